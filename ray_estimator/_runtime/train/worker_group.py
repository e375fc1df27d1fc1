"""A training group on Ray Train: what runs in its controller and in its workers.

Ray's TensorFlow backend is not used: it imports TensorFlow on the driver and in the controller, and picks ports that
other processes can take before TensorFlow binds them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import ray
import ray.train
from ray.train import UserCallback
from ray.train.backend import Backend, BackendConfig
from ray.util import get_node_ip_address

from ray_estimator._engine import entrypoints
from ray_estimator._jobs.jobs import TrainJob
from ray_estimator._jobs.remote_errors import RemoteFailure, WorkerFailed
from ray_estimator._jobs.results import TrainResult
from ray_estimator._jobs.worker import WorkerStatus
from ray_estimator._process.periodic import PeriodicThread
from ray_estimator._runtime import ray_private
from ray_estimator._runtime.data.rows import RankRows, RowSource, blocks_from
from ray_estimator._runtime.logs import set_log_levels

T = TypeVar("T")

_HEARTBEAT_SECS = 0.25
_ANSWER_SECS = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """What a worker knows of its group; set in its process before training starts.

    Attributes:
        attempt: Unique name of this start of the group.
        number: Number of the start, from 1.
        addresses: ``host:port`` of each worker, in rank order.
    """

    attempt: str
    number: int
    addresses: tuple[str, ...]


_group: Group | None = None
_reserved_port: socket.socket | None = None


def _set_group(group: Group) -> None:
    global _group
    _group = group


def _reserve_port() -> str:
    """Bind a free port until the process ends, shared with TensorFlow's server only."""
    global _reserved_port
    os.environ["TF_GRPC_REUSE_PORT"] = "1"
    _reserved_port = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    _reserved_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _reserved_port.bind(("", 0))
    return f"{get_node_ip_address()}:{_reserved_port.getsockname()[1]}"


class GroupBackend(Backend):
    """Sends every worker its `Group`. Runs in Ray Train's controller, at each start of the group."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Choose the addresses, the name and the number of this start."""
        addresses = tuple(worker_group.execute(_reserve_port)) if len(worker_group) > 1 else ("",)
        number = ray.get(backend_config.monitor.begin.remote())
        worker_group.execute(_set_group, Group(uuid.uuid4().hex, number, addresses))


@dataclass
class GroupBackendConfig(BackendConfig):
    """Selects `GroupBackend`, which gets the number of each start from the `RunMonitor`."""

    monitor: Any

    @property
    def backend_cls(self) -> type[Backend]:
        """Return the backend."""
        return GroupBackend


class FailOnUserErrors(UserCallback):
    """Fails the run on errors that a restart would repeat. Runs in Ray Train's controller.

    Ray Train retries after any error of a worker, but not after an error of a callback.
    """

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the user's error, if one of the workers' errors is one."""
        for rank, error in sorted(worker_exceptions.items()):
            failure = failure_in(error)
            if failure is not None and not failure.peers_lost:
                raise WorkerFailed(failure)
            self._monitor.failed.remote(f"rank {rank}: {failure or _first_line(error)}")


def failure_in(error: BaseException | None) -> RemoteFailure | None:
    """Return the failure inside Ray's wrappers, if any."""
    while error is not None:
        if isinstance(error, WorkerFailed):
            return error.failure
        inner = ray_private.wrapped_error(error) or error.__cause__
        error = inner if inner is not error else None
    return None


def _first_line(error: BaseException) -> str:
    error = ray_private.wrapped_error(error) or error
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


@dataclass(frozen=True)
class GroupWork:
    """What each worker of a group is sent."""

    job: TrainJob
    monitor: Any
    num_cpus: int | None
    rows: RowSource | None
    feed: Any
    log_levels: Mapping[str, int]


@dataclass
class GroupWorker:
    """A `Worker` in a Ray Train worker process."""

    rank: int
    group: Group
    work: GroupWork
    status: WorkerStatus = field(default_factory=WorkerStatus)
    is_asked_to_stop: bool = False

    @property
    def attempt(self) -> int:
        """Return the number of the group's start, from 1."""
        return self.group.number

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return ``host:port`` of each worker, in rank order."""
        return self.group.addresses

    @property
    def num_cpus(self) -> int | None:
        """Return the CPUs of this worker."""
        return self.work.num_cpus

    @cached_property
    def rows(self) -> RankRows | None:
        """Return this rank's rows."""
        source, feed = self.work.rows, self.work.feed
        if source is None:
            return None
        if feed is None:
            return RankRows(source, 0, 1, source.block_refs)
        refs_from = partial(blocks_from, feed, self.group.attempt, self.rank, source.timeout_secs)
        return RankRows(source, self.rank, len(self.addresses), refs_from)

    def exchange(self, topic: str, value: T) -> list[T]:
        """Return every rank's value, exchanged through the monitor."""
        if len(self.addresses) == 1:
            return [value]
        self.status.enter(f"waiting for the other ranks ({topic})")
        values: list[T] = ray.get(self.work.monitor.exchange.remote(self.group.attempt, topic, self.rank, value))
        return values


def run_worker(config: dict[str, GroupWork]) -> TrainResult:
    """Train as one worker. Ray Train calls it in every worker process."""
    work = config["work"]
    set_log_levels(work.log_levels)
    assert _group is not None, "The backend sets the group before training starts."
    worker = GroupWorker(ray.train.get_context().get_world_rank(), _group, work)
    try:
        _join(worker)
        with _heartbeat(worker):
            return entrypoints.train(work.job, worker)
    except BaseException as error:  # KeyboardInterrupt too: the driver gets all of them as a RemoteFailure.
        has_peers = len(worker.addresses) > 1
        raise WorkerFailed(RemoteFailure.of(error, f"rank {worker.rank}", has_peers=has_peers)) from None


def _join(worker: GroupWorker) -> None:
    """Register this rank with the monitor. Raises KeyboardInterrupt if the driver has ended the run."""
    context = ray.get_runtime_context()
    joining = worker.work.monitor.join.remote(
        worker.group.attempt, worker.rank, context.current_actor, context.get_node_id()
    )
    try:
        end_reason = ray.get(joining)
    except ray.exceptions.RayActorError:
        end_reason = "the driver is gone"
    if end_reason is not None:
        raise KeyboardInterrupt(end_reason)


@contextlib.contextmanager
def _heartbeat(worker: GroupWorker) -> Iterator[None]:
    """Send the worker's status to the monitor periodically, and once more at the end. An answer may ask it to stop."""
    monitor_answers = True

    def beat() -> None:
        nonlocal monitor_answers
        answer = worker.work.monitor.beat.remote(worker.group.attempt, worker.rank, worker.status.snapshot())
        try:
            worker.is_asked_to_stop = ray.get(answer, timeout=_ANSWER_SECS)
            monitor_answers = True
        except ray.exceptions.RayError as error:  # Of the two, training's own error counts.
            if monitor_answers:
                logger.warning("The heartbeat of rank %d gets no answer: %s", worker.rank, error)
            monitor_answers = False

    try:
        with PeriodicThread(beat, _HEARTBEAT_SECS, name="heartbeat"):
            yield
    finally:
        beat()
