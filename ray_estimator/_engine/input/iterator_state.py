"""Where the tf.data iterator of an input_fn is: kept with each checkpoint, on every rank, where TensorFlow can."""

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
_MOST_BYTES = 2**26
"""What the places of all ranks together may take: the ranks meet in one process. As much may be constants."""
_MOST_GROWTH_BYTES = 2**32

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where one rank's iterator is.

    Attributes:
        pipeline: Tells the tf.data pipeline from another one.
        ended: Whether some rank has no batch for another step.
        state: The contents of the two files that TensorFlow needs to go on; empty at the beginning.
    """

    pipeline: int
    ended: bool
    state: tuple[bytes, bytes] = (b"", b"")

    @classmethod
    def from_bytes(cls, content: bytes) -> Place:
        """What `to_bytes` made."""
        pipeline, ended, split = _HEADER.unpack_from(content)
        content = content[_HEADER.size :]
        return cls(pipeline, ended, (content[:split], content[split:]))

    def to_bytes(self) -> bytes:
        """For a file."""
        return _HEADER.pack(self.pipeline, self.ended, len(self.state[0])) + b"".join(self.state)


class CannotSaveError(Exception):
    """Why there is no place."""


def place_in(prefix: str | None, position: IteratorPosition, rank: int) -> Place | None:
    """The place of a rank that lies beside a checkpoint; None for the beginning."""
    if prefix is None:
        return None
    place = Place.from_bytes(Path(prefix + position.suffix(rank)).read_bytes())
    return place if any(place.state) else None


def keep_place(feed: Feed, worker: Worker, position: IteratorPosition, found: Place | None) -> None:
    """Makes the iterator of `feed` go on where a checkpoint has left it, and be saved with each of this run."""
    if feed.pipeline is None:
        raise AssertionError("Only a feed with an iterator has a place.")
    place = KeepPlace(*feed.pipeline, feed.first_ready, worker, position, found)
    feed.hooks = [place]
    feed.position_after = lambda steps: place.position
    feed.first_ready = place.first_ready
    feed.save_places = place.save


class KeepPlace(v1.train.SessionRunHook):
    """Starts an iterator in each new session, where a checkpoint has left it, and saves its place.

    Runs on every rank. All ranks go on, or all begin anew.

    Args:
        iterator: The iterator.
        dataset: What it iterates over, as input_fn made it.
        first_ready: Asks an iterator that begins whether it has a first batch.
        worker: This rank.
        position: For the checkpoints of this run.
        found: Where to go on; None, on all ranks, to begin anew.
    """

    def __init__(
        self,
        iterator: Any,
        dataset: tf.data.Dataset,
        first_ready: Callable[[v1.Session], bool],
        worker: Worker,
        position: IteratorPosition,
        found: Place | None,
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
        """For the next checkpoint; None if the place cannot be saved."""
        return self._position

    def first_ready(self, session: v1.Session) -> bool:
        """Whether there is a batch for the first step. An iterator that goes on cannot be asked: it would give it."""
        return self._first_ready(session) if self._found is None else not self._found.ended

    def begin(self) -> None:
        # Here, behind model_fn: operations before those of the model would change what it draws at random.
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
        if found is None or all(self._worker.exchange("goes on in its input", self._goes_on(session, found))):
            return
        self._found = None
        session.run(self._iterator.initializer)
        if self._worker.rank == 0:
            logger.warning("What input_fn gives begins anew: it is another pipeline than in the run that was cut off.")

    def save(self, session: v1.Session, step: int, input_ended: bool) -> list[bytes]:
        """The places of all ranks; none if one of them cannot be saved. Call on every rank at the same step."""
        if self._position is None:
            return []
        place, why_not = None, None
        try:
            place = self._place(session, input_ended).to_bytes()
        except (CannotSaveError, tf.errors.OpError) as error:
            why_not = iterators.kernel_message(error) if isinstance(error, tf.errors.OpError) else str(error)
        saved = self._worker.exchange(f"place in the input at step {step}", (place, why_not))
        places = [place for place, _ in saved if place is not None]
        if len(places) == len(saved):
            return places
        self._position = None
        if self._worker.rank == 0:
            reasons = (reason for _, reason in saved if reason is not None)
            logger.info("Where input_fn is cannot be saved, so after a restart it begins anew: %s", next(reasons))
        return []

    def _goes_on(self, session: v1.Session, found: Place) -> bool:
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

    def _place(self, session: v1.Session, input_ended: bool) -> Place:
        """Where the iterator is.

        Raises:
            CannotSaveError: It is too much.
            OpError: TensorFlow cannot tell.
        """
        if self._found is not None and not self._is_started:
            return self._found
        if self._constant_bytes > _MOST_BYTES:
            raise CannotSaveError(f"the pipeline holds {_in_mib(self._constant_bytes)} of constants.")
        pipeline = int(session.run(self._fingerprint))
        if not self._is_started:
            return Place(pipeline, input_ended)
        grown = _resident_bytes() - self._resident_bytes
        if grown > _MOST_GROWTH_BYTES:
            raise CannotSaveError(f"shuffle() and cache() may hold most of {_in_mib(grown)}.")
        with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
            session.run(self._save_state, {self._prefix: os.path.join(folder, _NAME)})
            index, data = _files_in(folder)
            if data.stat().st_size > _MOST_BYTES / max(len(self._worker.addresses), 1):
                raise CannotSaveError(f"shuffle() and cache() hold {_in_mib(data.stat().st_size)}.")
            return Place(pipeline, input_ended, (index.read_bytes(), data.read_bytes()))


def _files_in(folder: str) -> tuple[Path, Path]:
    """The files of TensorFlow's checkpoint of an iterator."""
    return Path(folder, f"{_NAME}.index"), Path(folder, f"{_NAME}.data-00000-of-00001")


def _in_mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"


def _resident_bytes() -> int:
    """How much memory this process has; where nobody can say, none."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0
