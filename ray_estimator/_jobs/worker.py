"""A training worker as the engine and the driver see it: its rank, its input, its status."""

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
"""Returns an iterator over rows, in order; called once per pass."""


@dataclass
class WorkerStatus:
    """The current status of a worker. The engine writes it; the runtime reads it from another thread.

    Attributes:
        phase: What the worker is doing, in words ("in step 12").
        since: Start of the phase, as `time.monotonic()` of this process.
        step: The last completed global step; -1 before the session is open.
        loss: The last loss that was read.
        examples_per_sec: Examples per second over all ranks. None: not known yet.
        step_secs: Recent duration of a step, with hooks and input.
        input_wait: Fraction of the last interval spent waiting for input. None: not measured.
        published_step: On the chief, the step of the newest published checkpoint.
        publishing_step: On the chief, the step of the checkpoint that is being published.
        publishing_secs: On the chief, how long the last checkpoint took to publish.
    """

    phase: str = "starting"
    since: float = field(default_factory=time.monotonic)
    step: int = -1
    loss: float | None = None
    examples_per_sec: float | None = None
    step_secs: float | None = None
    input_wait: float | None = None
    published_step: int | None = None
    publishing_step: int | None = None
    publishing_secs: float | None = None

    def enter(self, phase: str) -> None:
        """Start a new phase."""
        self.phase = phase
        self.since = time.monotonic()

    def snapshot(self) -> StatusSnapshot:
        """Return the status as it is sent to the monitor."""
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
    """The status of a worker at its last heartbeat.

    Attributes:
        phase: As in `WorkerStatus`, like all attributes that are not listed here.
        secs_in_phase: How long the worker had been in the phase.
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
    """The state of a training run as the driver sees it.

    Attributes:
        attempt: Name of the current group. None: no group has started.
        number: Number of the current group, from 1; 0 before the first.
        statuses: Status by rank, of the ranks that have sent a heartbeat.
        silent_secs: Seconds since the last heartbeat, by rank.
        actors: Handles for killing the worker processes, by rank.
        failures: Why earlier groups ended, in words.
        nodes: Ray's ids of the nodes, by rank.
    """

    attempt: str | None
    number: int
    statuses: dict[int, StatusSnapshot]
    silent_secs: dict[int, float]
    actors: dict[int, Any]
    failures: tuple[str, ...]
    nodes: Mapping[int, str] = field(default_factory=dict)


class TrainingRows(Protocol):
    """The training rows of one rank."""

    @property
    def rows_per_epoch(self) -> int | None:
        """Return the number of rows in an epoch, over all ranks. None: no epoch has ended yet."""

    def tables_from(self, position: InputPosition) -> Tables:
        """Return the rows after those that are consumed at a position."""


class Worker(Protocol):
    """Where a training job runs: a worker of a group, or the caller's process."""

    @property
    def rank(self) -> int:
        """Return the rank in the group, from 0."""

    @property
    def attempt(self) -> int:
        """Return the number of the group's start, from 1."""

    @property
    def addresses(self) -> Sequence[str]:
        """Return ``host:port`` of every worker in the group, in rank order; not used with a single worker."""

    @property
    def num_cpus(self) -> int | None:
        """Return the CPUs that this worker may use. None: all CPUs of the host."""

    @property
    def status(self) -> WorkerStatus:
        """Return the status, which the engine updates."""

    @property
    def rows(self) -> TrainingRows | None:
        """Return this rank's rows. None: the input is not a Ray Dataset."""

    @property
    def is_asked_to_stop(self) -> bool:
        """Return whether training is to stop after the current step. Read by the chief."""

    def exchange(self, topic: str, value: T) -> list[T]:
        """Return the values of all ranks, in rank order.

        Every rank calls it with the same topics in the same order. A topic is used once per attempt.
        """
