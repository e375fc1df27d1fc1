"""Nodes that were told to go: a preemption notice, or a scale-down."""

from __future__ import annotations

import logging
import time

import ray

from ray_estimator._jobs.worker import GroupView

_LOOK_SECS = 2.0

logger = logging.getLogger(__name__)


class LeavingNodes:
    """Tells once of each node that is going away with ranks of a group on it, or with the driver.

    Ray places nothing new on such a node, and lets run what is there until somebody takes the node away.
    """

    def __init__(self) -> None:
        self._here = ray.get_runtime_context().get_node_id()
        self._looked_at = float("-inf")
        self._told: set[str] = set()

    def news(self, view: GroupView) -> str | None:
        """What to leave now, in words."""
        if time.monotonic() - self._looked_at < _LOOK_SECS:
            return None
        self._looked_at = time.monotonic()
        fresh = draining_nodes() - self._told
        ranks = sorted(rank for rank, node in view.nodes.items() if node in fresh)
        if not ranks and self._here not in fresh:
            return None
        self._told |= fresh
        who = f"rank {', '.join(map(str, ranks))}" if ranks else "the driver"
        return f"the node of {who} is going away"

    @property
    def takes_the_driver(self) -> bool:
        """Whether the driver's own node is among them."""
        return self._here in self._told


def draining_nodes() -> set[str]:
    """The nodes that are going away, by Ray's ids. Ray has no public name for that."""
    try:
        return set(ray._private.state.state.get_draining_nodes())
    except Exception:  # Whatever is wrong with Ray's control service, training goes on as long as it can.
        logger.debug("Could not look for nodes that are going away.", exc_info=True)
        return set()
