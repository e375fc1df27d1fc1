"""Detection of a hung training run, from the state that the driver sees. Has no side effects."""

from __future__ import annotations

from ray_estimator._jobs.worker import GroupView
from ray_estimator.errors import StepTimeoutError

_UNRESPONSIVE_SECS = 5.0


class StepWatchdog:
    """Detects a group in which no rank has changed its phase or step within the timeout.

    Steps are synchronous, so a hang on one rank soon stops all the others.
    """

    def __init__(self, timeout_secs: float | None, now: float) -> None:
        self._timeout_secs = timeout_secs
        self._state: object = None
        self._changed_at = now
        self._reported: str | None = None

    def check(self, view: GroupView, now: float) -> StepTimeoutError | None:
        """Return the error for a group that hangs, once per group; None otherwise."""
        if view.attempt is None or view.attempt == self._reported:
            return None
        state = (view.attempt, {rank: (status.phase, status.step) for rank, status in view.statuses.items()})
        if state != self._state:
            self._state, self._changed_at = state, now
        if self._timeout_secs is None or now - self._changed_at < self._timeout_secs:
            return None
        self._reported = view.attempt
        unresponsive = {rank: secs for rank, secs in view.silent_secs.items() if secs >= _UNRESPONSIVE_SECS}
        waiting = {
            rank: f"{status.phase} for {status.secs_in_phase:.0f} s"
            for rank, status in view.statuses.items()
            if rank not in unresponsive
        }
        step = max((status.step for status in view.statuses.values()), default=-1)
        return StepTimeoutError(step, self._timeout_secs, waiting, unresponsive)
