"""Nodes that Ray drains: after a preemption notice, or for a scale-down."""

from __future__ import annotations

import logging
import time

import ray

from ray_estimator._jobs.worker import GroupView
from ray_estimator._runtime import ray_private

_POLL_SECS = 2.0

logger = logging.getLogger(__name__)


class DrainingNodes:
    """The draining nodes that affect a run: those with a rank of its group, and the driver's.

    Ray schedules nothing new on a draining node, and leaves its processes running until the node is removed.
    """

    def __init__(self) -> None:
        self._driver_node = ray.get_runtime_context().get_node_id()
        self._polled_at = float("-inf")
        self._reported: set[str] = set()
        self._has_warned = False

    def newly_draining(self, view: GroupView) -> str | None:
        """Return which of the run's nodes started to drain, in words; each node is reported once."""
        if time.monotonic() - self._polled_at < _POLL_SECS:
            return None
        self._polled_at = time.monotonic()
        new = self._poll() - self._reported
        ranks = sorted(rank for rank, node in view.nodes.items() if node in new)
        if not ranks and self._driver_node not in new:
            return None
        self._reported |= new
        who = f"rank {', '.join(map(str, ranks))}" if ranks else "the driver"
        return f"the node of {who} is going away"

    @property
    def include_driver(self) -> bool:
        """Whether the driver's node is draining."""
        return self._driver_node in self._reported

    def _poll(self) -> set[str]:
        try:
            return ray_private.draining_nodes()
        except Exception as error:  # A missing name, or any error of the control service: training continues.
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "Ray does not say which nodes are draining (%s: %s). While that lasts, preemption notices are "
                    "missed: a preempted node ends its group without a final checkpoint and counts as a failure.",
                    type(error).__name__,
                    error,
                )
            return set()
