"""The lease of a model_dir: one driver at a time trains there.

A driver acquires the lease by creating the file of the next generation in `.writers/`, which only one driver can. It
keeps the lease by a heartbeat in that file. Later owners delete all but the newest two generations.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from ray_estimator._checkpoints.writers import Record, Token, Writers
from ray_estimator._process.identity import Process
from ray_estimator._process.periodic import PeriodicThread
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import ModelDirInUseError, WriterFencedError

HEARTBEAT_SECS = 5.0
TAKEOVER_SECS = 30.0
_POLL_SECS = 1.0

_held_here: set[str] = set()
"""Nonces of the leases that this process holds."""

logger = logging.getLogger(__name__)


class Lease:
    """The right to write in a model_dir, as returned by `acquire`. Held on the driver.

    Attributes:
        generation: Grows with each driver that acquires the lease.
    """

    def __init__(self, writers: Writers, generation: int, record: Record) -> None:
        self.generation = generation
        self._writers = writers
        self._record = record
        self._pid = os.getpid()

    def renew(self) -> None:
        """Write a heartbeat. If the store is unreachable, log it: the next heartbeat tries again.

        Raises:
            WriterFencedError: Another driver has acquired the lease.
        """
        try:
            self._renew()
        except WriterFencedError:
            raise
        except Exception as error:  # Depends on the store. The lease stays ours until another driver acquires it.
            self._writers.warn("renew the lease", error)

    def _renew(self) -> None:
        own = Token(self.generation)
        newest = Token(self._writers.newest().generation)
        found = Record.from_bytes(self._writers.read(own))
        if newest > own or (found is not None and found.nonce != self._record.nonce):
            raise self._writers.fenced_by(newest)
        self._record = replace(self._record, beat=self._record.beat + 1)
        self._writers.write(own, self._record)

    def release(self) -> None:
        """Free the lease for the next driver. If that fails, the next driver has to wait for missing heartbeats."""
        if self._pid != os.getpid():
            return  # A fork of the owner.
        _held_here.discard(self._record.nonce)
        try:
            self._writers.write(Token(self.generation), replace(self._record, released=True))
        except Exception as error:  # Depends on the store; the training is complete.
            self._writers.warn("release the lease", error)


def acquire(
    model_dir: str,
    storage: Storage,
    *,
    process: Process | None = None,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> Lease:
    """Acquire the lease of a model_dir.

    A released lease, or one whose owner is known to be dead, is free. Any other is watched: after a heartbeat it is in
    use; without one for `TAKEOVER_SECS`, by this process's clock, it is taken over.

    Args:
        model_dir: Local path or URL.
        storage: Accesses it.
        process: The new owner. None: this process.
        clock: Monotonic clock in seconds.
        wait: Sleeps for a number of seconds.

    Raises:
        ModelDirInUseError: Another driver, or another thread of this one, trains there.
    """
    writers, process = Writers(model_dir, storage), process or Process.current()
    while True:
        generation = _wait_until_free(writers, process, clock, wait)
        lease = _create(writers, generation + 1, process)
        if lease is not None:
            return lease
        wait(_POLL_SECS)


def _wait_until_free(
    writers: Writers, process: Process, clock: Callable[[], float], wait: Callable[[float], None]
) -> int:
    """Return the newest generation once its lease is free."""
    watched: tuple[int, bytes] | None = None
    watched_since = 0.0
    while True:
        generation = writers.newest().generation
        content = writers.read(Token(generation))
        owner = Record.from_bytes(content)
        if generation == 0 or (owner is not None and _is_free(owner, process)):
            return generation
        if owner is not None and owner.writer == process:
            raise _in_use(writers, owner)
        if watched is None or watched[0] != generation:
            watched, watched_since = (generation, content), clock()
            logger.warning(
                "%s is leased to %s. Waiting for its heartbeat.",
                writers.redacted_model_dir,
                owner or "an unknown process",
            )
        elif watched[1] != content:
            raise _in_use(writers, owner)
        elif clock() - watched_since >= TAKEOVER_SECS:
            logger.warning(
                "No heartbeat of %s for %g s; taking over the lease.", owner or "the unknown process", TAKEOVER_SECS
            )
            return generation
        wait(_POLL_SECS)


def _is_free(owner: Record, process: Process) -> bool:
    """Whether the owner is known to have finished."""
    if owner.released or owner.writer.is_dead():
        return True
    return owner.writer == process and owner.nonce not in _held_here


def _in_use(writers: Writers, owner: Record | None) -> ModelDirInUseError:
    if owner is None:
        return ModelDirInUseError(writers.redacted_model_dir, "an unknown host", 0, 0)
    return ModelDirInUseError(writers.redacted_model_dir, owner.writer.host, owner.writer.pid, owner.since)


def _create(writers: Writers, generation: int, process: Process) -> Lease | None:
    """Create a generation; None if another driver was faster."""
    record = Record.begin(process)
    _held_here.add(record.nonce)
    if writers.create(Token(generation), record):
        tokens = writers.tokens()
        # A process suspended since its listing may have filled the gap of a deleted generation.
        if all(token.generation <= generation for token in tokens):
            writers.delete(token for token in tokens if token.generation < generation - 1)
            return Lease(writers, generation, record)
    _held_here.discard(record.nonce)
    return None


@contextlib.contextmanager
def hold(model_dir: str, storage: Storage, on_loss: Callable[[], None]) -> Iterator[Lease]:
    """Acquire the lease of a model_dir, and renew it from a thread until the block ends. Runs on the driver.

    An unreachable store does not end the training: the lease stays with its owner until another driver acquires it.

    Args:
        model_dir: Local path or URL.
        storage: Accesses it.
        on_loss: Called in that thread when another driver has acquired the lease; it should end the block.

    Raises:
        ModelDirInUseError: Another driver, or another thread of this one, trains there.
        WriterFencedError: Replaces any other error that ends the block after the lease was lost.
    """
    lease = acquire(model_dir, storage)
    losses: list[WriterFencedError] = []

    def renew() -> None:
        try:
            lease.renew()
        except WriterFencedError as loss:
            losses.append(loss)
            heartbeat.stop()
            on_loss()

    heartbeat = PeriodicThread(renew, HEARTBEAT_SECS, name="lease heartbeat")
    try:
        with heartbeat:
            yield lease
    except Exception as error:
        if losses and not isinstance(error, WriterFencedError):
            raise losses[0] from error
        raise
    finally:
        lease.release()
