"""Where the tf.data iterator of an input_fn is: kept with each checkpoint, on every rank, where TensorFlow can."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine import internals
from ray_estimator._engine.feed import Feed
from ray_estimator._jobs import Worker
from ray_estimator._position import IteratorPosition

_HEADER = struct.Struct("<Q?")
_MOST_BYTES = 2**26
"""Of all ranks together: they meet in one place."""

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where one rank's iterator is.

    Attributes:
        pipeline: Tells the tf.data pipeline from another one.
        ended: Whether some rank has no batch for another step.
        state: What TensorFlow needs to go on; empty at the beginning.
    """

    pipeline: int
    ended: bool
    state: bytes

    @classmethod
    def from_bytes(cls, content: bytes) -> Place:
        """What `to_bytes` made."""
        pipeline, ended = _HEADER.unpack_from(content)
        return cls(pipeline, ended, content[_HEADER.size :])

    def to_bytes(self) -> bytes:
        """For a file."""
        return _HEADER.pack(self.pipeline, self.ended) + self.state


def place_in(prefix: str | None, position: IteratorPosition, rank: int) -> Place | None:
    """The place of a rank that lies beside a checkpoint; None for the beginning."""
    if prefix is None:
        return None
    place = Place.from_bytes(Path(prefix + position.suffix(rank)).read_bytes())
    return place if place.state else None


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
        iterator = internals.resource_of(self._iterator)
        with v1.colocate_with(iterator.op):
            self._fingerprint = internals.fingerprint_of(self._dataset)
            self._state = internals.state_of(iterator)
            self._given = v1.placeholder(tf.string, [])
            self._restore = internals.restore_state(iterator, self._given)

    def after_create_session(self, session: v1.Session, coord: Any) -> None:
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
        saved = self._worker.exchange(f"place in the input at step {step}", self._saved(session, input_ended))
        places, reasons = zip(*saved, strict=True)
        if None not in places:
            return list(places)
        self._position = None
        if self._worker.rank == 0:
            because = next(filter(None, reasons))
            logger.info("Where input_fn is cannot be saved, so after a restart it begins anew: %s", because)
        return []

    def _goes_on(self, session: v1.Session, found: Place) -> bool:
        try:
            if session.run(self._fingerprint) != found.pipeline:
                return False
            session.run(self._restore, {self._given: found.state})
        except tf.errors.OpError as error:
            logger.warning("The iterator of input_fn could not be restored: %s", internals.text_of(error))
            return False
        return True

    def _saved(self, session: v1.Session, input_ended: bool) -> tuple[bytes | None, str | None]:
        """The place as bytes, or why there is none."""
        if self._found is not None and not self._is_started:
            return self._found.to_bytes(), None
        try:
            state = session.run(self._state) if self._is_started else b""
            place = Place(int(session.run(self._fingerprint)), input_ended, state)
        except tf.errors.OpError as error:
            return None, internals.text_of(error)
        if len(state) > _MOST_BYTES / max(len(self._worker.addresses), 1):
            return None, f"it takes {len(state) / 2**20:.0f} MiB, with what shuffle() and cache() hold."
        return place.to_bytes(), None
