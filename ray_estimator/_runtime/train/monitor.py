"""The actor of a training run: ranks exchange values and report their status to it; the driver polls it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from ray_estimator._jobs.worker import GroupView, StatusSnapshot


@dataclass
class _Exchange:
    values: dict[int, Any] = field(default_factory=dict)
    is_complete: asyncio.Event = field(default_factory=asyncio.Event)
    num_answered: int = 0


class RunMonitor:
    """An actor with async methods only, so that ranks can wait for one another in `exchange`."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._num_started = 0
        self._attempt: str | None = None
        self._number = 0
        self._end_reason: str | None = None
        self._stopping: str | None = None
        self._failures: list[str] = []
        self._reset()

    def _reset(self) -> None:
        self._statuses: dict[int, StatusSnapshot] = {}
        self._heard_at: dict[int, float] = {}
        self._actors: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}
        self._exchanges: dict[tuple[str, str], _Exchange] = defaultdict(_Exchange)

    async def begin(self) -> int:
        """Register a new group; return its number in the run, from 1."""
        self._num_started += 1
        return self._num_started

    async def join(self, attempt: str, rank: int, actor: Any, node: str) -> str | None:
        """Register a rank of a group; return why the run has ended, if it has."""
        if attempt != self._attempt:
            self._attempt, self._number = attempt, self._number + 1
            self._reset()
        self._actors[rank] = actor
        self._nodes[rank] = node
        self._heard_at[rank] = time.monotonic()
        return self._end_reason

    async def beat(self, attempt: str, rank: int, status: StatusSnapshot) -> bool:
        """Receive a rank's heartbeat; return whether its group is to stop."""
        if attempt == self._attempt:
            self._statuses[rank] = status
            self._heard_at[rank] = time.monotonic()
        return attempt == self._stopping

    async def stop(self, attempt: str) -> None:
        """Ask a group to stop after the current step, with a checkpoint."""
        self._stopping = attempt

    async def exchange(self, attempt: str, topic: str, rank: int, value: Any) -> list[Any]:
        """Wait for every rank's value; return them in rank order. A topic is used once per attempt."""
        exchange = self._exchanges[attempt, topic]
        exchange.values[rank] = value
        if len(exchange.values) == self._num_ranks:
            exchange.is_complete.set()
        await exchange.is_complete.wait()
        exchange.num_answered += 1
        if exchange.num_answered == self._num_ranks:
            self._exchanges.pop((attempt, topic), None)
        return [exchange.values[other] for other in range(self._num_ranks)]

    async def failed(self, reason: str) -> None:
        """Record why a group ended."""
        self._failures.append(reason)

    async def end(self, reason: str) -> None:
        """End the run: no further group may start."""
        self._end_reason = reason

    async def view(self) -> GroupView:
        """Return the current state of the run."""
        now = time.monotonic()
        silent_secs = {rank: now - heard_at for rank, heard_at in self._heard_at.items()}
        return GroupView(
            self._attempt,
            self._number,
            dict(self._statuses),
            silent_secs,
            dict(self._actors),
            tuple(self._failures),
            dict(self._nodes),
        )
