"""Graphs and restored weights that stay in a task's process, so that the next range of rows starts at once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import tensorflow.compat.v1 as v1

from ray_estimator._engine.restoring import build_saver, saver_of
from ray_estimator._engine.warm_starting import starting_point
from ray_estimator._interrupts import uninterrupted
from ray_estimator._jobs import EvaluateJob, PredictJob, Tables

if TYPE_CHECKING:
    import pyarrow as pa


_KEPT = 2
_FREE_FIELDS = ("code", "steps", "name")  # the code goes by its key; the others leave the graph as it is


class WarmModel(Protocol):
    """What can be kept."""

    def close(self) -> None:
        """Frees what it holds."""


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
    with contextlib.closing(build(job)) as fresh:
        yield fresh


def _kept(job: EvaluateJob | PredictJob, mode: str, build: Callable[[Any], M]) -> M:
    key = (mode, job.code.key, *_shape_of(job))
    if key not in _models:
        while len(_models) >= _KEPT:
            _models.popitem(last=False)[1].close()
        with uninterrupted():
            _models[key] = build(job)
    _models.move_to_end(key)
    return _models[key]  # type: ignore[return-value]


def _shape_of(job: EvaluateJob | PredictJob) -> tuple[str, ...]:
    """What decides, beside the code, what is built and restored."""
    fields = (field.name for field in dataclasses.fields(job) if field.name not in _FREE_FIELDS)
    return tuple(f"{name}={getattr(job, name)!r}" for name in fields)


def open_session(job: EvaluateJob | PredictJob, scaffold: v1.train.Scaffold, stack: contextlib.ExitStack) -> v1.Session:
    """A plain session over the default graph, initialised or restored; finalizes the graph."""
    prefix = stack.enter_context(starting_point(job))
    build_saver(saver_of(scaffold))
    creator = v1.train.ChiefSessionCreator(
        scaffold, config=job.config.resolved_session_config(), checkpoint_filename_with_path=prefix
    )
    return creator.create_session()


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
