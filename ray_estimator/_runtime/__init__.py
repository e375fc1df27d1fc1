"""Where work runs: on a Ray cluster, or in the caller's process. Knows no TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from ray_estimator._jobs.jobs import EvaluateJob, PredictJob, TrainJob
    from ray_estimator._jobs.results import TrainResult
    from ray_estimator._jobs.serialization import SerializedCode
    from ray_estimator._process.signals import Stop
    from ray_estimator._runtime.data.rows import RowSource

P = ParamSpec("P")
R = TypeVar("R")


class Runtime(Protocol):
    """Where work runs. Called on the driver."""

    def pack(self, parts: Mapping[str, Any]) -> SerializedCode[Mapping[str, Any]]:
        """Makes user code ready to go where this runtime runs it."""

    def connect(self) -> None:
        """Makes sure that there is a place to run; before that, nothing is started, and user code is packed already.

        Raises:
            ValueError: model_dir is a temporary directory of one node, and there are several.
        """

    def check_model_dir(self) -> None:
        """Raises `ModelDirAccessError` if model_dir cannot be used from here, or from where workers run."""

    def train(self, job: TrainJob, rows: RowSource | None, stop: Stop) -> TrainResult:
        """Trains with as many workers as the job's config says; gives the chief's result.

        Once there is a wish to `stop`, training ends after its step, with a checkpoint. Where workers train it raises
        KeyboardInterrupt if they do not end within `stop_timeout_secs`, and a `TrainingError` if `stop` says at once.
        """

    def evaluate(self, job: EvaluateJob, rows: RowSource | None, *, one_task: bool) -> dict[str, Any]:
        """Evaluates; over ranges of rows when there are rows, unless it must be one task."""

    def predict(self, job: PredictJob, rows: RowSource | None, *, one_task: bool) -> Generator[Any]:
        """Predicts; gives batches in input order."""

    def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a module-level function as one task."""
