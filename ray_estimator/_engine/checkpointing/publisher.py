"""Publish checkpoints from a background thread, so that a training step waits only for the local copy."""

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

_POLL_SECS = 0.5
_EXIT_TIMEOUT_SECS = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint in a staging directory.

    Attributes:
        prefix: Local path of its files, without suffix.
        step: Its global step.
        retention: Which older checkpoints to keep when this one is published.
        position: Position in the input; None if unknown.
        staging: Removes the directory when it closes.
    """

    prefix: str
    step: int
    retention: Retention
    staging: contextlib.ExitStack
    position: Position | None = None


class Publisher:
    """Publishes saved checkpoints in its own thread: one in flight, and the newest of those that wait.

    Runs on the chief. Leaving the context waits for pending checkpoints, up to a deadline, and joins the thread.

    Attributes:
        store: Where checkpoints are published.

    Args:
        store: Where checkpoints are published.
        timeout_secs: Limit for publishing one checkpoint; None for no limit.
        fence: Raises if this process may no longer write.
        status: Receives the steps in flight and published.
        exit_timeout_secs: Limit for the wait when the context is left.
    """

    def __init__(
        self,
        store: CheckpointStore,
        timeout_secs: float | None,
        fence: Callable[[], None] | None = None,
        status: WorkerStatus | None = None,
        *,
        exit_timeout_secs: float = _EXIT_TIMEOUT_SECS,
    ) -> None:
        self.store = store
        self._status = status or WorkerStatus()
        self._fence = fence
        self._timeout_secs = timeout_secs
        self._exit_timeout_secs = exit_timeout_secs
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
        with self._changed:
            is_published = self._changed.wait_for(lambda: self._is_idle, self._exit_timeout_secs)
            unpublished = None if is_published else self._next_to_arrive().step
            self._closed = True
            dropped, self._waiting = self._waiting, None
            self._changed.notify_all()
        if unpublished is None:
            self._thread.join()
        else:
            # The thread hangs in the store, and Python cannot end it.
            logger.error(
                "The checkpoint of step %d was not published within %.0f s and is abandoned: the store is too slow or "
                "does not respond.",
                unpublished,
                self._exit_timeout_secs,
            )
        if dropped is not None:
            dropped.staging.close()
        if self._failure is not None and error is not self._failure:
            logger.error("The last checkpoint could not be published: %s", self._failure)

    def submit(self, saved: Saved) -> None:
        """Schedule a checkpoint, in place of an older one that still waits.

        Raises:
            Exception: The store's error for an earlier checkpoint.
        """
        with self._changed:
            superseded: Saved | None = saved
            if self._failure is None:
                superseded, self._waiting = self._waiting, saved
                self._changed.notify_all()
        if superseded is not None:
            superseded.staging.close()
        self.check()
        if superseded is not None:
            logger.warning(
                "The store is slower than the saves: step %d is not published, step %d is next.",
                superseded.step,
                saved.step,
            )

    def check(self) -> None:
        """Raise the store's error if a checkpoint could not be published."""
        if self._failure is not None:
            raise self._failure

    def wait(self, on_wait: Callable[[str], None]) -> None:
        """Return when every submitted checkpoint is published.

        Args:
            on_wait: Called with a description of what is being published, each time that changes.

        Raises:
            StepTimeoutError: One checkpoint took longer than `timeout_secs`.
            Exception: The store's error.
        """
        with self._changed:
            reported = None
            while not self._is_idle:
                doing = f"publishing step {self._next_to_arrive().step}"
                if doing != reported:
                    on_wait(doing)
                    reported = doing
                self._require_in_time(doing)
                self._changed.wait(_POLL_SECS)
            self.check()
        if self._fence is not None:
            self.store.republish(self._fence)

    def conclude(self, end: EndOfRun) -> None:
        """Record how the run ended, with the newest checkpoint. Every checkpoint must be published."""
        self.store.conclude(end, self._fence)

    @property
    def _is_idle(self) -> bool:
        return self._waiting is None and self._in_flight is None

    def _next_to_arrive(self) -> Saved:
        saved = self._in_flight or self._waiting
        assert saved is not None
        return saved

    def _require_in_time(self, doing: str) -> None:
        if self._timeout_secs is None or self._in_flight is None:
            return
        secs = time.monotonic() - self._in_flight_since
        if secs > self._timeout_secs:
            raise StepTimeoutError(self._in_flight.step, self._timeout_secs, {0: f"{doing} for {secs:.0f} s"}, {})

    def _publish_all(self) -> None:
        while (saved := self._take_next()) is not None:
            try:
                with saved.staging:
                    self.store.publish(
                        saved.prefix, saved.step, saved.retention, position=saved.position, fence=self._fence
                    )
                logger.info("Published the checkpoint of step %d.", saved.step)
                self._status.published_step = saved.step
                self._status.publishing_secs = time.monotonic() - self._in_flight_since
            except BaseException as error:  # raised again in the training thread, by check()
                self._fail(error)
            with self._changed:
                self._in_flight = self._status.publishing_step = None
                self._changed.notify_all()

    def _take_next(self) -> Saved | None:
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
