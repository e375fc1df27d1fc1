"""Where work runs: on a Ray cluster, or in the caller's process. Imports no TensorFlow."""

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
        """Serialize user code for this runtime."""

    def connect(self) -> None:
        """Connect to where work runs. Called after user code is serialized; nothing is started before.

        Raises:
            ValueError: model_dir is a temporary directory of one node, and the cluster has several.
        """

    def check_model_dir(self) -> None:
        """Raise `ModelDirAccessError` if the driver or the workers cannot use model_dir."""

    def train(self, job: TrainJob, rows: RowSource | None, stop: Stop) -> TrainResult:
        """Train with the number of workers in the job's config; return the chief's result.

        After a request to `stop`, training ends after the current step, with a checkpoint. On workers, it raises
        KeyboardInterrupt if they do not end within `stop_timeout_secs`, and `TrainingError` if `stop.at_once` is set.
        """

    def evaluate(self, job: EvaluateJob, rows: RowSource | None, *, one_task: bool) -> dict[str, Any]:
        """Evaluate; with `rows`, in parallel over ranges of them, unless `one_task`."""

    def predict(self, job: PredictJob, rows: RowSource | None, *, one_task: bool) -> Generator[Any]:
        """Predict; yield batches in input order."""

    def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a module-level function as one task."""
