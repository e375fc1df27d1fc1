"""Decides from what the driver sees whether a training run still moves. Pure: it acts on nothing."""

from __future__ import annotations

from ray_estimator._jobs.worker import GroupView
from ray_estimator.errors import StepTimeoutError

_SILENT_SECS = 5.0


class StepWatch:
    """Looks for a group of which no rank's state has changed for too long.

    Steps are synchronous: whatever hangs on one rank soon stops all the others.
    """

    def __init__(self, timeout_secs: float | None, now: float) -> None:
        self._timeout_secs = timeout_secs
        self._seen: object = None
        self._changed_at = now
        self._given_up: str | None = None

    def overdue(self, view: GroupView, now: float) -> StepTimeoutError | None:
        """The error to end the group with, if nothing has moved for `timeout_secs`."""
        if view.attempt is None or view.attempt == self._given_up:
            return None
        state = (view.attempt, {rank: (status.phase, status.step) for rank, status in view.statuses.items()})
        if state != self._seen:
            self._seen, self._changed_at = state, now
        if self._timeout_secs is None or now - self._changed_at < self._timeout_secs:
            return None
        self._given_up = view.attempt
        silent = {rank: secs for rank, secs in view.silent_secs.items() if secs >= _SILENT_SECS}
        waiting = {
            rank: f"{status.phase} for {status.secs_in_phase:.0f} s"
            for rank, status in view.statuses.items()
            if rank not in silent
        }
        step = max((status.step for status in view.statuses.values()), default=-1)
        return StepTimeoutError(step, self._timeout_secs, waiting, silent)
