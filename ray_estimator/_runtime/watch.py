"""Decides from what the driver sees whether a training run still moves. Pure: it acts on nothing."""

from __future__ import annotations

from ray_estimator._jobs import GroupView
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
        state = (view.attempt, {rank: (vitals.phase, vitals.step) for rank, vitals in view.vitals.items()})
        if state != self._seen:
            self._seen, self._changed_at = state, now
        if self._timeout_secs is None or now - self._changed_at < self._timeout_secs:
            return None
        self._given_up = view.attempt
        silent = {rank: secs for rank, secs in view.silent_secs.items() if secs >= _SILENT_SECS}
        waiting = {
            rank: f"{vitals.phase} for {vitals.secs_in_phase:.0f} s"
            for rank, vitals in view.vitals.items()
            if rank not in silent
        }
        step = max((vitals.step for vitals in view.vitals.values()), default=-1)
        return StepTimeoutError(step, self._timeout_secs, waiting, silent)
