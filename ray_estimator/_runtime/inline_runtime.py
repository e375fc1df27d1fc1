"""The in-process runtime: the engine in the caller's process, with user code by reference.

Ray Data reads a Ray Dataset from this process; without one, Ray is never started.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ray_estimator._engine import entrypoints
from ray_estimator._jobs.jobs import EvaluateJob, PredictJob, TrainJob
from ray_estimator._jobs.results import TrainResult
from ray_estimator._jobs.serialization import InPlace
from ray_estimator._jobs.worker import GroupView, TrainingRows, WorkerStatus
from ray_estimator._process import legacy_keras
from ray_estimator._process.periodic import PeriodicThread
from ray_estimator._process.signals import Stop
from ray_estimator._reporting.progress import Progress, make_progress
from ray_estimator._storage.preflight import Preflight
from ray_estimator._storage.storage import Storage
from ray_estimator.config import RunConfig

if TYPE_CHECKING:
    from ray_estimator._runtime.data.rows import RowSource

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_PROGRESS_SECS = 0.5


@dataclass
class InlineWorker:
    """A `Worker` that is the caller's process, without peers."""

    rows: TrainingRows | None = None
    status: WorkerStatus = field(default_factory=WorkerStatus)
    stop: Stop = field(default_factory=Stop)
    rank: int = 0
    attempt: int = 1
    addresses: tuple[str, ...] = ()
    num_cpus: int | None = None

    @property
    def is_asked_to_stop(self) -> bool:
        """Return whether the caller asked training to stop."""
        return self.stop.why is not None

    def exchange(self, topic: str, value: T) -> list[T]:
        """Return the caller's own value."""
        return [value]


class InlineRuntime:
    """Runs everything in the caller's process and thread.

    Raises:
        ValueError: The config asks for legacy Keras, but TensorFlow is imported with Keras 3.
    """

    def __init__(self, config: RunConfig) -> None:
        if config.legacy_keras:
            _enable_legacy_keras()
        self._config = config

    def pack(self, parts: Mapping[str, Any]) -> InPlace[Mapping[str, Any]]:
        """Keep user code by reference."""
        return InPlace(parts)

    def connect(self) -> None:
        """Do nothing."""

    def check_model_dir(self) -> None:
        """Check model_dir from this process."""
        with Preflight(str(self._config.model_dir), Storage(self._config.storage_options)).file_from("this process"):
            pass

    def train(self, job: TrainJob, rows: RowSource | None, stop: Stop) -> TrainResult:
        """Train in this process, without restarts."""
        worker = InlineWorker(None if rows is None else self._rank_rows(rows), stop=stop)
        with make_progress(self._config, job.last_step) as progress, _showing(progress, worker):
            return entrypoints.train(job, worker)

    def _rank_rows(self, rows: RowSource) -> TrainingRows:
        from ray_estimator._runtime.data.rows import RankRows

        return RankRows(rows, 0, 1, rows.block_refs)

    def evaluate(self, job: EvaluateJob, rows: RowSource | None, *, one_task: bool) -> dict[str, Any]:
        """Evaluate in this process, in one pass."""
        return entrypoints.evaluate(job, None if rows is None else rows.tables)

    def predict(self, job: PredictJob, rows: RowSource | None, *, one_task: bool) -> Generator[Any]:
        """Predict in this process."""
        return entrypoints.predict(job, None if rows is None else rows.tables)

    def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `fn`."""
        return fn(*args, **kwargs)


def _enable_legacy_keras() -> None:
    """Set the environment variable, or check it if TensorFlow, which reads it once, is imported already."""
    if "tensorflow" not in sys.modules:
        os.environ.update(legacy_keras.ENABLED)
    elif not legacy_keras.is_enabled():
        name = legacy_keras.NAME
        raise ValueError(
            f"RunConfig(legacy_keras=True) with num_workers=0 requires {name}=1 before TensorFlow is imported, but "
            f"TensorFlow is imported already, with {name} unset or off, got {os.environ.get(name)!r}. Set it at the "
            f'top of the script: os.environ["{name}"] = "1"; or train on Ray workers, where it is set automatically.'
        )


@contextlib.contextmanager
def _showing(progress: Progress, worker: InlineWorker) -> Iterator[None]:
    """Update the progress display periodically, and once more after success."""

    def show() -> None:
        progress.show(GroupView("in process", 1, {0: worker.status.snapshot()}, {}, {}, ()))

    def update() -> None:
        worker.stop.announce()
        show()

    with PeriodicThread(update, _PROGRESS_SECS, name="progress"):
        yield
    show()
