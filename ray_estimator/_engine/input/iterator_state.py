"""Saves the tf.data iterator of an input_fn with each checkpoint, on every rank, if TensorFlow supports it."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._data.position import IteratorPosition
from ray_estimator._engine.graph.traversal import ancestors
from ray_estimator._engine.input.feed import Feed
from ray_estimator._jobs.worker import Worker
from ray_estimator._tf_private import iterators

_HEADER = struct.Struct("<Q?Q")
_NAME = "iterator"
_MAX_BYTES = 2**26
"""Limit for the states of all ranks together, since one process collects them; also for constants of the pipeline."""
_MAX_GROWTH_BYTES = 2**32
"""Limit for the growth of this process's memory since the iterator started, which bounds its state."""

logger = logging.getLogger(__name__)


class IteratorState(NamedTuple):
    """The saved state of one rank's iterator.

    Attributes:
        pipeline: Fingerprint of the tf.data pipeline.
        ended: Whether some rank has no batch for another step.
        state: The contents of the index file and the data file that TensorFlow restores from. Empty for a new iterator.
    """

    pipeline: int
    ended: bool
    state: tuple[bytes, bytes] = (b"", b"")

    @classmethod
    def from_bytes(cls, content: bytes) -> IteratorState:
        """Decode the result of `to_bytes`."""
        pipeline, ended, split = _HEADER.unpack_from(content)
        content = content[_HEADER.size :]
        return cls(pipeline, ended, (content[:split], content[split:]))

    def to_bytes(self) -> bytes:
        """Encode the state for a file."""
        return _HEADER.pack(self.pipeline, self.ended, len(self.state[0])) + b"".join(self.state)


class CannotSaveError(Exception):
    """The iterator cannot be saved; the message says why."""


def saved_iterator(prefix: str | None, position: IteratorPosition, rank: int) -> IteratorState | None:
    """Return the iterator state that was saved with a checkpoint for a rank; None for a new iterator."""
    if prefix is None:
        return None
    saved = IteratorState.from_bytes(Path(prefix + position.suffix(rank)).read_bytes())
    return saved if any(saved.state) else None


def keep_iterator(feed: Feed, worker: Worker, position: IteratorPosition, found: IteratorState | None) -> None:
    """Make `feed` resume its iterator from a checkpoint, and save it with each checkpoint of this run."""
    if feed.pipeline is None:
        raise AssertionError("The feed has no iterator to save.")
    hook = IteratorHook(*feed.pipeline, feed.first_ready, worker, position, found)
    feed.hooks = [hook]
    feed.position_after = lambda steps: hook.position
    feed.first_ready = hook.first_ready
    feed.save_iterators = hook.save


class IteratorHook(v1.train.SessionRunHook):
    """Starts or resumes an iterator in each new session, and saves its state.

    Runs on every rank. Either all ranks resume, or all start with the first batch.

    Args:
        iterator: The iterator.
        dataset: The dataset that input_fn returned.
        first_ready: Returns whether a new iterator has a first batch.
        worker: This rank.
        position: The position to save in the checkpoints of this run.
        found: The state to resume from. None, on all ranks: start with the first batch.
    """

    def __init__(
        self,
        iterator: Any,
        dataset: tf.data.Dataset,
        first_ready: Callable[[v1.Session], bool],
        worker: Worker,
        position: IteratorPosition,
        found: IteratorState | None,
    ) -> None:
        self._iterator = iterator
        self._dataset = dataset
        self._first_ready = first_ready
        self._worker = worker
        self._position: IteratorPosition | None = position
        self._found = found
        self._is_started = False

    @property
    def position(self) -> IteratorPosition | None:
        """The position for the next checkpoint; None if the iterator cannot be saved."""
        return self._position

    def first_ready(self, session: v1.Session) -> bool:
        """Return whether there is a batch for the first step, without taking a batch from a resumed iterator."""
        return self._first_ready(session) if self._found is None else not self._found.ended

    def begin(self) -> None:
        # After model_fn, since operations before those of the model would change its random numbers.
        iterator = iterators.resource_of(self._iterator)
        with v1.get_default_graph().colocate_with(iterator.op):
            self._fingerprint = iterators.fingerprint_of(self._dataset)
            self._prefix = v1.placeholder(tf.string, [])
            self._save_state = iterators.save_state(iterator, self._prefix)
            self._restore_state = iterators.restore_state(iterator, self._prefix)
        self._constant_bytes = sum(
            (op.outputs[0].shape.num_elements() or 0) * op.outputs[0].dtype.size
            for op in ancestors([iterator.op, self._fingerprint.op])
            if op.type == "Const"
        )

    def after_create_session(self, session: v1.Session, coord: Any) -> None:
        self._resident_bytes = _resident_bytes()
        session.run(self._iterator.initializer)
        found, self._is_started = self._found, True
        if found is None or all(self._worker.exchange("resumes its input", self._restore(session, found))):
            return
        self._found = None
        session.run(self._iterator.initializer)
        if self._worker.rank == 0:
            logger.warning(
                "The input of input_fn starts at its first batch: its pipeline has changed since the last run."
            )

    def save(self, session: v1.Session, step: int, input_ended: bool) -> list[bytes]:
        """Return the states of all ranks; none if one cannot be saved. Every rank calls it at the same step."""
        if self._position is None:
            return []
        state, reason = None, None
        try:
            state = self._state(session, input_ended).to_bytes()
        except (CannotSaveError, tf.errors.OpError) as error:
            reason = iterators.kernel_message(error) if isinstance(error, tf.errors.OpError) else str(error)
        saved = self._worker.exchange(f"iterator state at step {step}", (state, reason))
        states = [state for state, _ in saved if state is not None]
        if len(states) == len(saved):
            return states
        self._position = None
        if self._worker.rank == 0:
            reasons = (reason for _, reason in saved if reason is not None)
            logger.info(
                "The iterator of input_fn cannot be saved, so a restart starts at its first batch: %s", next(reasons)
            )
        return []

    def _restore(self, session: v1.Session, found: IteratorState) -> bool:
        """Restore the iterator; False if that is impossible."""
        try:
            if session.run(self._fingerprint) != found.pipeline:
                return False
            with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
                for path, content in zip(_files_in(folder), found.state, strict=True):
                    path.write_bytes(content)
                session.run(self._restore_state, {self._prefix: os.path.join(folder, _NAME)})
        except tf.errors.OpError as error:
            logger.warning("The iterator of input_fn could not be restored: %s", iterators.kernel_message(error))
            return False
        return True

    def _state(self, session: v1.Session, input_ended: bool) -> IteratorState:
        """Return the state of the iterator.

        Raises:
            CannotSaveError: The state is too large.
            OpError: TensorFlow cannot save the pipeline.
        """
        if self._found is not None and not self._is_started:
            return self._found
        if self._constant_bytes > _MAX_BYTES:
            raise CannotSaveError(f"the pipeline has {_in_mib(self._constant_bytes)} of constants.")
        pipeline = int(session.run(self._fingerprint))
        if not self._is_started:
            return IteratorState(pipeline, input_ended)
        growth = _resident_bytes() - self._resident_bytes
        if growth > _MAX_GROWTH_BYTES:
            raise CannotSaveError(f"shuffle() and cache() may use most of {_in_mib(growth)}.")
        with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
            session.run(self._save_state, {self._prefix: os.path.join(folder, _NAME)})
            index, data = _files_in(folder)
            if data.stat().st_size > _MAX_BYTES / max(len(self._worker.addresses), 1):
                raise CannotSaveError(f"shuffle() and cache() use {_in_mib(data.stat().st_size)}.")
            return IteratorState(pipeline, input_ended, (index.read_bytes(), data.read_bytes()))


def _files_in(folder: str) -> tuple[Path, Path]:
    """Return the files of TensorFlow's checkpoint of an iterator."""
    return Path(folder, f"{_NAME}.index"), Path(folder, f"{_NAME}.data-00000-of-00001")


def _in_mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"


def _resident_bytes() -> int:
    """Return the resident memory of this process; 0 if the system does not tell."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0
