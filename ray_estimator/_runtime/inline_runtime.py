"""The in-process runtime: the same engine in the caller's process, user code by reference.

A Ray Dataset is iterated from here by Ray Data; without one, Ray is never started.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ray_estimator._engine import entrypoints
from ray_estimator._jobs.jobs import EvaluateJob, PredictJob, TrainJob
from ray_estimator._jobs.results import TrainResult
from ray_estimator._jobs.serialization import InPlace
from ray_estimator._jobs.worker import GroupView, TrainingRows, WorkerStatus
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

_LOOK_SECS = 0.5
_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"


@dataclass
class OwnProcess:
    """A `Worker` that is the caller's process, alone."""

    rows: TrainingRows | None = None
    status: WorkerStatus = field(default_factory=WorkerStatus)
    stop: Stop = field(default_factory=Stop)
    rank: int = 0
    attempt: int = 1
    addresses: tuple[str, ...] = ()
    num_cpus: int | None = None

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether the caller wants it to end."""
        return self.stop.why is not None

    def exchange(self, topic: str, value: T) -> list[T]:
        """The caller's own value."""
        return [value]


class InlineRuntime:
    """Runs everything in the caller's process and thread.

    Raises:
        ValueError: The config asks for legacy Keras where TensorFlow is imported with Keras 3.
    """

    def __init__(self, config: RunConfig) -> None:
        if config.legacy_keras:
            _use_legacy_keras()
        self._config = config

    def pack(self, parts: Mapping[str, Any]) -> InPlace[Mapping[str, Any]]:
        """User code as it is."""
        return InPlace(parts)

    def connect(self) -> None:
        """Nothing to connect to."""

    def check_model_dir(self) -> None:
        """Tries model_dir from here."""
        with Preflight(str(self._config.model_dir), Storage(self._config.storage_options)).file_from("this process"):
            pass

    def train(self, job: TrainJob, rows: RowSource | None, stop: Stop) -> TrainResult:
        """Trains here, where an exception ends it."""
        worker = OwnProcess(None if rows is None else self._rank_rows(rows), stop=stop)
        with make_progress(self._config, job.last_step) as progress, _showing(progress, worker):
            return entrypoints.train(job, worker)

    def _rank_rows(self, rows: RowSource) -> TrainingRows:
        from ray_estimator._runtime.data.rows import RankRows

        return RankRows(rows, 0, 1, rows.block_refs)

    def evaluate(self, job: EvaluateJob, rows: RowSource | None, *, one_task: bool) -> dict[str, Any]:
        """Evaluates here, in one pass."""
        return entrypoints.evaluate(job, None if rows is None else rows.tables)

    def predict(self, job: PredictJob, rows: RowSource | None, *, one_task: bool) -> Generator[Any]:
        """Predicts here."""
        return entrypoints.predict(job, None if rows is None else rows.tables)

    def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls `fn`."""
        return fn(*args, **kwargs)


def _use_legacy_keras() -> None:
    """TensorFlow chooses its Keras while it is imported: before that we can say which, after it only look."""
    if "tensorflow" not in sys.modules:
        os.environ[_LEGACY_KERAS] = "1"
    elif os.environ.get(_LEGACY_KERAS) not in ("1", "true", "True"):
        raise ValueError(
            f"RunConfig(legacy_keras=True) with num_workers=0 expects {_LEGACY_KERAS}=1 in the environment before "
            f"TensorFlow is imported, but TensorFlow is imported already and {_LEGACY_KERAS} is "
            f"{os.environ.get(_LEGACY_KERAS)!r}. Set it at the head of the script: "
            f'os.environ["{_LEGACY_KERAS}"] = "1"; or train on Ray workers, which get it from us.'
        )


@contextlib.contextmanager
def _showing(progress: Progress, worker: OwnProcess) -> Iterator[None]:
    done = threading.Event()

    def look() -> None:
        progress.show(GroupView("in process", 1, {0: worker.status.snapshot()}, {}, {}, ()))

    def keep_looking() -> None:
        while not done.wait(_LOOK_SECS):
            worker.stop.announce()
            look()

    thread = threading.Thread(target=keep_looking, name="progress", daemon=True)
    thread.start()
    try:
        yield
        look()
    finally:
        done.set()
        thread.join()
