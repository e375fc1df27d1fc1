"""What a worker is given: its place in the group, and what it may ask of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

    from ray_estimator._data.position import InputPosition


T = TypeVar("T")


Tables = Callable[[], "Iterator[pa.Table]"]
"""Starts an iterator over rows, in order; called once for each pass."""


@dataclass
class WorkerStatus:
    """What one worker says of itself. The engine writes it, the runtime reads it from another thread.

    Attributes:
        phase: What the worker does now, in words ("in step 12").
        since: When the phase began, in `time.monotonic()` of this process.
        step: The last global step that ended; -1 before the session is open.
        loss: The last loss that was looked at.
        examples_per_sec: Global rate; None until it is known.
        target: The last step of the run, if there is one.
        step_secs: How long a step took of late, with hooks and input.
        input_wait: The fraction of the last interval that went by in waiting for input; None if nobody measures it.
        published_step: The newest checkpoint that is published, on the chief.
        publishing_step: The one that is on its way, on the chief.
        publishing_secs: How long the last one was on its way.
    """

    phase: str = "starting"
    since: float = field(default_factory=time.monotonic)
    step: int = -1
    loss: float | None = None
    examples_per_sec: float | None = None
    target: int | None = None
    step_secs: float | None = None
    input_wait: float | None = None
    published_step: int | None = None
    publishing_step: int | None = None
    publishing_secs: float | None = None

    def enter(self, phase: str) -> None:
        """Notes that a new phase begins now."""
        self.phase = phase
        self.since = time.monotonic()

    def snapshot(self) -> StatusSnapshot:
        """What the monitor is told."""
        return StatusSnapshot(
            phase=self.phase,
            secs_in_phase=time.monotonic() - self.since,
            step=self.step,
            loss=self.loss,
            examples_per_sec=self.examples_per_sec,
            step_secs=self.step_secs,
            input_wait=self.input_wait,
            published_step=self.published_step,
            publishing_step=self.publishing_step,
            publishing_secs=self.publishing_secs,
        )


@dataclass(frozen=True)
class StatusSnapshot:
    """One rank as the monitor knows it.

    Attributes:
        phase: What it does, in words.
        secs_in_phase: Since when, at its last sign of life.
        step: The last global step that ended; -1 before the session is open.
        loss: The last loss it looked at.
        examples_per_sec: Rate over all ranks.
        step_secs: As in `WorkerStatus`, and so are the others.
    """

    phase: str
    secs_in_phase: float
    step: int
    loss: float | None
    examples_per_sec: float | None
    step_secs: float | None = None
    input_wait: float | None = None
    published_step: int | None = None
    publishing_step: int | None = None
    publishing_secs: float | None = None


@dataclass(frozen=True)
class GroupView:
    """What the driver sees.

    Attributes:
        attempt: Name of the current group; None before the first one has started.
        number: Which group it is, from 1; 0 before the first one.
        statuses: The ranks that were heard of.
        silent_secs: Seconds since each was last heard of.
        actors: Handles by which the ranks' processes can be killed.
        failures: What ended earlier groups, in words.
        nodes: The nodes where the ranks run, by Ray's ids.
    """

    attempt: str | None
    number: int
    statuses: dict[int, StatusSnapshot]
    silent_secs: dict[int, float]
    actors: dict[int, Any]
    failures: tuple[str, ...]
    nodes: Mapping[int, str] = field(default_factory=dict)


class TrainingRows(Protocol):
    """One rank's rows in training."""

    @property
    def rows_per_epoch(self) -> int | None:
        """How many rows an epoch has, of all ranks together; None until one has been seen to its end."""

    def tables_from(self, position: InputPosition) -> Tables:
        """The rows behind those that are consumed."""


class Worker(Protocol):
    """Where a training job runs: one process of a group, or the caller's own."""

    @property
    def rank(self) -> int:
        """Position in the group, from 0."""

    @property
    def attempt(self) -> int:
        """Which start of the group it belongs to, from 1."""

    @property
    def addresses(self) -> Sequence[str]:
        """``host:port`` of every worker of the group, in rank order; empty if there is one."""

    @property
    def num_cpus(self) -> int | None:
        """CPUs that this worker may use; None if all of the host's."""

    @property
    def status(self) -> WorkerStatus:
        """What the engine says of itself while it runs."""

    @property
    def rows(self) -> TrainingRows | None:
        """This rank's rows, if the input is a Ray Dataset."""

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether the run is to end after the step that runs now. The chief looks."""

    def exchange(self, topic: str, value: T) -> list[T]:
        """Gives every rank's `value`, in rank order. Every rank calls it, with the same topics in the same order.

        Each topic of an attempt serves once.
        """
