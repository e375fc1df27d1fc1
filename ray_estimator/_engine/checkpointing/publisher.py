"""Checkpoints on their way to the store, beside training: the chief's step pays only for the copy out of TensorFlow."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from ray_estimator._checkpoints.store import CheckpointStore, Retention
from ray_estimator._data.position import EndOfRun, Position
from ray_estimator._jobs.worker import WorkerStatus
from ray_estimator.errors import StepTimeoutError

_LOOK_SECS = 0.5
_LAST_CHANCE_SECS = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that lies in a staging directory.

    Attributes:
        prefix: Local path of its files, without suffix.
        step: Its global step.
        retention: What becomes of older checkpoints when this one is published.
        position: Where in its input training is; None if nobody can say.
        staging: Removes the directory when it closes.
    """

    prefix: str
    step: int
    retention: Retention
    staging: contextlib.ExitStack
    position: Position | None = None


class Publisher:
    """Publishes what is saved, in a thread of its own: one checkpoint in flight, and the newest of those that wait.

    Used on the chief. As a context manager it ends the thread; what has been saved by then gets some seconds to arrive.

    Attributes:
        store: Where to.

    Args:
        store: Where to.
        timeout_secs: How long one checkpoint may take; None for any time.
        fence: Raises if this process may write no more.
        status: Is told what is on its way, and what has arrived.
    """

    def __init__(
        self,
        store: CheckpointStore,
        timeout_secs: float | None,
        fence: Callable[[], None] | None = None,
        status: WorkerStatus | None = None,
    ) -> None:
        self.store = store
        self._status = status or WorkerStatus()
        self._fence = fence
        self._timeout_secs = timeout_secs
        self._changed = threading.Condition()
        self._waiting: Saved | None = None
        self._in_flight: Saved | None = None
        self._in_flight_since = 0.0
        self._failure: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._publish_all, name="publisher", daemon=True)

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + _LAST_CHANCE_SECS
        with self._changed:
            arrived = self._changed.wait_for(lambda: self._is_idle, deadline - time.monotonic())
            self._closed = True
            self._changed.notify_all()
        if not arrived:
            logger.error("The store is too slow: the checkpoint of step %d is given up.", self._newest_step())
        elif self._failure is not None and error is not self._failure:
            logger.error("The last checkpoint could not be published: %s", self._failure)

    def submit(self, saved: Saved) -> None:
        """Hands over a checkpoint; takes back an older one that still waits. Raises what an earlier one failed with."""
        with self._changed:
            unwanted: Saved | None = saved
            if self._failure is None:
                unwanted, self._waiting = self._waiting, saved
                self._changed.notify_all()
        if unwanted is not None:
            unwanted.staging.close()
        self.check()
        if unwanted is not None:
            logger.warning(
                "The store is slower than the saves: step %d is not published, step %d is next.",
                unwanted.step,
                saved.step,
            )

    def check(self) -> None:
        """Raises the store's own error if a checkpoint could not be published."""
        if self._failure is not None:
            raise self._failure

    def wait(self, on_wait: Callable[[str], None]) -> None:
        """Returns when all that was handed over is published.

        Args:
            on_wait: Is told, in words, what is waited for, each time that changes.

        Raises:
            StepTimeoutError: One checkpoint took longer than `timeout_secs`.
            Exception: The store's own error.
        """
        with self._changed:
            told = None
            while not self._is_idle:
                doing = f"publishing step {self._newest_step()}"
                if doing != told:
                    on_wait(doing)
                    told = doing
                self._require_in_time(doing)
                self._changed.wait(_LOOK_SECS)
            self.check()
        if self._fence is not None:
            self.store.republish(self._fence)

    def conclude(self, end: EndOfRun) -> None:
        """Notes how the run has ended, beside the newest checkpoint. All must be published."""
        self.store.conclude(end, self._fence)

    @property
    def _is_idle(self) -> bool:
        return self._waiting is None and self._in_flight is None

    def _newest_step(self) -> int:
        saved = self._in_flight or self._waiting
        return -1 if saved is None else saved.step

    def _require_in_time(self, doing: str) -> None:
        if self._timeout_secs is None or self._in_flight is None:
            return
        secs = time.monotonic() - self._in_flight_since
        if secs > self._timeout_secs:
            raise StepTimeoutError(self._in_flight.step, self._timeout_secs, {0: f"{doing} for {secs:.0f} s"}, {})

    def _publish_all(self) -> None:
        while (saved := self._next()) is not None:
            try:
                with saved.staging:
                    self.store.publish(
                        saved.prefix, saved.step, saved.retention, position=saved.position, fence=self._fence
                    )
                logger.info("Published the checkpoint of step %d.", saved.step)
                self._status.published_step = saved.step
                self._status.publishing_secs = time.monotonic() - self._in_flight_since
            except BaseException as error:
                self._fail(error)
            with self._changed:
                self._in_flight = self._status.publishing_step = None
                self._changed.notify_all()

    def _next(self) -> Saved | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closed)
            self._in_flight, self._waiting = self._waiting, None
            self._in_flight_since = time.monotonic()
            self._status.publishing_step = None if self._in_flight is None else self._in_flight.step
            return self._in_flight

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            dropped, self._waiting = self._waiting, None
        if dropped is not None:
            dropped.staging.close()
