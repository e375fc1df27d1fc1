"""Graphs and restored weights that stay in a task's process, so that the next range of rows starts at once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import tensorflow.compat.v1 as v1

from ray_estimator._engine.checkpointing.saver import build_saver, saver_of
from ray_estimator._engine.checkpointing.warm_start import starting_point
from ray_estimator._jobs.jobs import EvaluateJob, PredictJob
from ray_estimator._jobs.worker import Tables
from ray_estimator._process.heartbeat import record_heartbeat
from ray_estimator._process.signals import uninterrupted

if TYPE_CHECKING:
    import pyarrow as pa


_KEPT = 2
# The code goes by its key, the checkpoint by what the variables hold; the others leave the graph as it is.
_FREE_FIELDS = ("code", "checkpoint", "fingerprint", "steps", "name")


class WarmModel(Protocol):
    """What can be kept."""

    @property
    def session(self) -> WarmSession:
        """Its session."""


M = TypeVar("M", bound=WarmModel)

_models: OrderedDict[tuple[Any, ...], WarmModel] = OrderedDict()


@contextlib.contextmanager
def model(job: EvaluateJob | PredictJob, mode: str, build: Callable[[Any], M]) -> Iterator[M]:
    """The model of `job`, from this process if it is here already. A task runs alone in its process.

    Code without a key says nothing of what it is, so its model is built anew and closed at the end.
    """
    if job.code.key is not None:
        yield _kept(job, mode, build)
        return
    fresh = build(job)
    with contextlib.closing(fresh.session):
        yield fresh


def _kept(job: EvaluateJob | PredictJob, mode: str, build: Callable[[Any], M]) -> M:
    key = (mode, job.code.key, *_shape_of(job))
    with uninterrupted():
        if key not in _models:
            while len(_models) >= _KEPT:
                _models.popitem(last=False)[1].session.close()
            _models[key] = build(job)
        _models.move_to_end(key)
        _models[key].session.hold_weights_of(job)
    return _models[key]  # type: ignore[return-value]


def _shape_of(job: EvaluateJob | PredictJob) -> tuple[str, ...]:
    """What decides, beside the code, which graph is built."""
    fields = (field.name for field in dataclasses.fields(job) if field.name not in _FREE_FIELDS)
    begins = job.fingerprint if job.checkpoint is None else "a checkpoint"  # initial weights are not restored later
    return (f"from {begins}", *(f"{name}={getattr(job, name)!r}" for name in fields))


class WarmSession:
    """A session over the default graph, initialised or restored, that can restore another checkpoint. Finalizes it."""

    def __init__(self, job: EvaluateJob | PredictJob, scaffold: v1.train.Scaffold) -> None:
        self._scaffold = scaffold
        self._saver = saver_of(scaffold)
        build_saver(self._saver)
        self._graph = v1.get_default_graph()
        self._weights: Any = _weights_of(job)
        with starting_point(job) as prefix:
            creator = v1.train.ChiefSessionCreator(
                scaffold, config=job.config.resolved_session_config(), checkpoint_filename_with_path=prefix
            )
            self._session = creator.create_session()

    def run(self, fetches: Any, feed_dict: Any = None) -> Any:
        """As a session's `run`."""
        record_heartbeat()
        return self._session.run(fetches, feed_dict)

    def hold_weights_of(self, job: EvaluateJob | PredictJob) -> None:
        """Restores the job's checkpoint, unless its values are here already; the graph stays."""
        if self._weights == _weights_of(job):
            return
        self._weights = None  # of no checkpoint, if it breaks off in the middle
        with self._graph.as_default(), starting_point(job) as prefix:
            self._saver.restore(self._session, prefix)
            self._session.run(self._scaffold.local_init_op)
        self._weights = _weights_of(job)

    @property
    def plain(self) -> v1.Session:
        """The session itself, for hooks."""
        return self._session

    def close(self) -> None:
        """Frees what it holds."""
        self._session.close()


def _weights_of(job: EvaluateJob | PredictJob) -> tuple[str | None, str | None]:
    return None if job.checkpoint is None else job.checkpoint.path, job.fingerprint


class Source:
    """Rows that are named when a range starts, behind an iterator that was built before."""

    def __init__(self) -> None:
        self._tables: Tables | None = None

    @contextlib.contextmanager
    def reading(self, tables: Tables) -> Iterator[None]:
        """Names the rows; lets go of them at the end, and so of the blocks that they lie in."""
        self._tables = tables
        try:
            yield
        finally:
            self._tables = None

    def __call__(self) -> Iterator[pa.Table]:
        if self._tables is None:
            raise AssertionError("A range was started without rows.")
        return self._tables()
