"""Keep graphs and restored weights in a task's process, so that the next range of rows starts without a delay."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import tensorflow.compat.v1 as v1

from ray_estimator._engine.checkpointing.saver import build_saver, saver_of
from ray_estimator._engine.checkpointing.warm_start import checkpoint_or_warm_start
from ray_estimator._jobs.jobs import EvaluateJob, PredictJob
from ray_estimator._jobs.worker import Tables
from ray_estimator._process.heartbeat import record_heartbeat
from ray_estimator._process.signals import uninterrupted

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_MODELS = 2
# The code is identified by its key, and the checkpoint is restored; the others do not change the graph.
_FIELDS_OUTSIDE_GRAPH = ("code", "checkpoint", "fingerprint", "steps", "name")


class WarmModel(Protocol):
    """A model that can be cached."""

    @property
    def session(self) -> WarmSession:
        """The session, which caching closes or restores."""


M = TypeVar("M", bound=WarmModel)

_models: OrderedDict[tuple[Any, ...], WarmModel] = OrderedDict()


@contextlib.contextmanager
def model(job: EvaluateJob | PredictJob, mode: str, build: Callable[[Any], M]) -> Iterator[M]:
    """Provide the model of `job`, from the cache if possible. Not thread-safe: a process runs one task at a time.

    Code without a key cannot be identified, so its model is built each time and closed at the end.
    """
    if job.code.key is not None:
        yield _cached(job, mode, build)
        return
    fresh = build(job)
    with contextlib.closing(fresh.session):
        yield fresh


def _cached(job: EvaluateJob | PredictJob, mode: str, build: Callable[[Any], M]) -> M:
    key = (mode, job.code.key, *_graph_key(job))
    with uninterrupted():
        if key not in _models:
            while len(_models) >= _MAX_MODELS:
                _models.popitem(last=False)[1].session.close()
            _models[key] = build(job)
        _models.move_to_end(key)
        _models[key].session.restore_weights_of(job)
    return _models[key]  # type: ignore[return-value]


def _graph_key(job: EvaluateJob | PredictJob) -> tuple[str, ...]:
    """Return what determines the graph, besides the code."""
    fields = (field.name for field in dataclasses.fields(job) if field.name not in _FIELDS_OUTSIDE_GRAPH)
    weights = job.fingerprint if job.checkpoint is None else "a checkpoint"  # initial weights cannot be restored
    return (f"from {weights}", *(f"{name}={getattr(job, name)!r}" for name in fields))


class WarmSession:
    """A session that can restore another checkpoint later. Finalizes the default graph."""

    def __init__(self, job: EvaluateJob | PredictJob, scaffold: v1.train.Scaffold) -> None:
        self._scaffold = scaffold
        self._saver = saver_of(scaffold)
        build_saver(self._saver)
        self._graph = v1.get_default_graph()
        self._weights: Any = _weights_key(job)
        with checkpoint_or_warm_start(job) as prefix:
            creator = v1.train.ChiefSessionCreator(
                scaffold, config=job.config.resolved_session_config(), checkpoint_filename_with_path=prefix
            )
            self._session = creator.create_session()

    def run(self, fetches: Any, feed_dict: Any = None) -> Any:
        """Run the session, and record a heartbeat."""
        record_heartbeat()
        return self._session.run(fetches, feed_dict)

    def restore_weights_of(self, job: EvaluateJob | PredictJob) -> None:
        """Restore the job's checkpoint, unless the variables hold it already."""
        if self._weights == _weights_key(job):
            return
        self._weights = None  # unknown if restoring fails halfway
        with self._graph.as_default(), checkpoint_or_warm_start(job) as prefix:
            self._saver.restore(self._session, prefix)
            self._session.run(self._scaffold.local_init_op)
        self._weights = _weights_key(job)

    @property
    def raw_session(self) -> v1.Session:
        """The underlying session, for hooks."""
        return self._session

    def close(self) -> None:
        """Close the session and free its memory."""
        self._session.close()


def _weights_key(job: EvaluateJob | PredictJob) -> tuple[str | None, str | None]:
    return None if job.checkpoint is None else job.checkpoint.path, job.fingerprint


class SwitchableRows:
    """The rows of a cached graph's input, set for each range after the graph was built."""

    def __init__(self) -> None:
        self._tables: Tables | None = None

    @contextlib.contextmanager
    def reading(self, tables: Tables) -> Iterator[None]:
        """Set the rows within the context. Drop them at its end, so that their blocks can be freed."""
        self._tables = tables
        try:
            yield
        finally:
            self._tables = None

    def __call__(self) -> Iterator[pa.Table]:
        if self._tables is None:
            raise AssertionError("The input was started without rows.")
        return self._tables()
