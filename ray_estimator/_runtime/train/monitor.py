"""The meeting point of a training run: workers exchange small values there and tell how they are; the driver looks."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from ray_estimator._jobs.worker import GroupView, StatusSnapshot


@dataclass
class _Meeting:
    values: dict[int, Any] = field(default_factory=dict)
    everyone: asyncio.Event = field(default_factory=asyncio.Event)
    given: int = 0


class RunMonitor:
    """An actor of a training run; all its methods are async, so that ranks can wait for one another in it."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._started = 0
        self._attempt: str | None = None
        self._number = 0
        self._ended: str | None = None
        self._to_stop: str | None = None
        self._failures: list[str] = []
        self._forget()

    def _forget(self) -> None:
        self._statuses: dict[int, StatusSnapshot] = {}
        self._heard: dict[int, float] = {}
        self._actors: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}
        self._meetings: dict[tuple[str, str], _Meeting] = defaultdict(_Meeting)

    async def begin(self) -> int:
        """A new group starts; gives its number, from 1, which no other group of the run has."""
        self._started += 1
        return self._started

    async def join(self, attempt: str, rank: int, actor: Any, node: str) -> str | None:
        """A rank of a new group says that it is there, and where; gives why the run is over, if it is."""
        if attempt != self._attempt:
            self._attempt, self._number = attempt, self._number + 1
            self._forget()
        self._actors[rank] = actor
        self._nodes[rank] = node
        self._heard[rank] = time.monotonic()
        return self._ended

    async def beat(self, attempt: str, rank: int, status: StatusSnapshot) -> bool:
        """A rank says how it is; gives whether its group is to stop."""
        if attempt == self._attempt:
            self._statuses[rank] = status
            self._heard[rank] = time.monotonic()
        return attempt == self._to_stop

    async def stop(self, attempt: str) -> None:
        """The group is to stop after its step, with a checkpoint."""
        self._to_stop = attempt

    async def exchange(self, attempt: str, topic: str, rank: int, value: Any) -> list[Any]:
        """Waits for every rank's value; gives them in rank order. Each topic of an attempt serves once."""
        meeting = self._meetings[attempt, topic]
        meeting.values[rank] = value
        if len(meeting.values) == self._num_ranks:
            meeting.everyone.set()
        await meeting.everyone.wait()
        meeting.given += 1
        if meeting.given == self._num_ranks:
            self._meetings.pop((attempt, topic), None)
        return [meeting.values[other] for other in range(self._num_ranks)]

    async def failed(self, what: str) -> None:
        """A group ended with an error."""
        self._failures.append(what)

    async def end(self, why: str) -> None:
        """No further group may start."""
        self._ended = why

    async def view(self) -> GroupView:
        """What the driver sees now."""
        now = time.monotonic()
        silent = {rank: now - heard for rank, heard in self._heard.items()}
        return GroupView(
            self._attempt,
            self._number,
            dict(self._statuses),
            silent,
            dict(self._actors),
            tuple(self._failures),
            dict(self._nodes),
        )
