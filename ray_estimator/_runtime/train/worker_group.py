"""A training group on Ray Train: what runs in the controller and in the workers.

Ray's own TensorFlow backend is not used: it imports TensorFlow into the driver and the controller, and chooses ports
that others may take before TensorFlow binds them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
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
from ray_estimator._runtime.data.rows import RankRows, RowSource, blocks_from
from ray_estimator._runtime.logs import speak_as

T = TypeVar("T")

_BEAT_SECS = 0.25
_ANSWER_SECS = 10.0


@dataclass(frozen=True)
class Group:
    """What a worker knows of its group; set in its process before training starts.

    Attributes:
        attempt: Names this start of the group.
        number: Which start it is, from 1.
        addresses: ``host:port`` of each worker, in rank order.
    """

    attempt: str
    number: int
    addresses: tuple[str, ...]


_group: Group | None = None
_held_port: socket.socket | None = None


def _join_group(group: Group) -> None:
    global _group
    _group = group


def _hold_port() -> str:
    """Chooses a port and keeps it until the process ends: TensorFlow's server binds beside us, others cannot."""
    global _held_port
    os.environ["TF_GRPC_REUSE_PORT"] = "1"
    _held_port = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    _held_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _held_port.bind(("", 0))
    return f"{get_node_ip_address()}:{_held_port.getsockname()[1]}"


class GroupBackend(Backend):
    """Tells every worker who its peers are. Runs in Ray Train's controller, at each start of the group."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Chooses addresses and a name for this attempt."""
        addresses = tuple(worker_group.execute(_hold_port)) if len(worker_group) > 1 else ("",)
        number = ray.get(backend_config.monitor.begin.remote())
        worker_group.execute(_join_group, Group(uuid.uuid4().hex, number, addresses))


@dataclass
class GroupBackendConfig(BackendConfig):
    """Selects `GroupBackend`, which asks the `RunMonitor` for the number of each start."""

    monitor: Any

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend."""
        return GroupBackend


class EndOnUserErrors(UserCallback):
    """Ends the run on errors that another attempt would only repeat. Runs in Ray Train's controller.

    Ray Train retries whatever a worker raises; an error of a callback it does not.
    """

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the user's error, if there is one among the workers' errors."""
        for rank, error in sorted(worker_exceptions.items()):
            failure = failure_in(error)
            if failure is not None and not failure.peers_lost:
                raise WorkerFailed(failure)
            self._monitor.failed.remote(f"rank {rank}: {failure or _first_line(error)}")


def failure_in(error: BaseException | None) -> RemoteFailure | None:
    """The failure that Ray's wrappers carry, if any."""
    while error is not None:
        if isinstance(error, WorkerFailed):
            return error.failure
        inner = getattr(error, "_base_exc", None) or getattr(error, "controller_failure", None) or error.__cause__
        error = inner if inner is not error else None
    return None


def _first_line(error: BaseException) -> str:
    error = getattr(error, "health_check_failure", error)  # what a failed health check of Ray Train's has found
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


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
        """Which start of the group it is."""
        return self.group.number

    @property
    def addresses(self) -> tuple[str, ...]:
        """``host:port`` of each worker, in rank order."""
        return self.group.addresses

    @property
    def num_cpus(self) -> int | None:
        """CPUs of this worker."""
        return self.work.num_cpus

    @cached_property
    def rows(self) -> RankRows | None:
        """This rank's rows."""
        source, feed = self.work.rows, self.work.feed
        if source is None:
            return None
        if feed is None:
            return RankRows(source, 0, 1, source.block_refs)
        refs_from = partial(blocks_from, feed, self.group.attempt, self.rank, source.timeout_secs)
        return RankRows(source, self.rank, len(self.addresses), refs_from)

    def exchange(self, topic: str, value: T) -> list[T]:
        """Every rank's value, by way of the monitor."""
        if len(self.addresses) == 1:
            return [value]
        self.status.enter(f"waiting for the other ranks ({topic})")
        values: list[T] = ray.get(self.work.monitor.exchange.remote(self.group.attempt, topic, self.rank, value))
        return values


def run_worker(config: dict[str, GroupWork]) -> TrainResult:
    """Trains as one worker. The function that Ray Train calls in every worker process."""
    work = config["work"]
    speak_as(work.log_levels)
    assert _group is not None, "The backend names the group before training starts."
    worker = GroupWorker(ray.train.get_context().get_world_rank(), _group, work)
    try:
        _join(worker)
        with _sending_heartbeats(worker):
            return entrypoints.train(work.job, worker)
    except BaseException as error:
        has_peers = len(worker.addresses) > 1
        raise WorkerFailed(RemoteFailure.of(error, f"rank {worker.rank}", has_peers=has_peers)) from None


def _join(worker: GroupWorker) -> None:
    """Tells the monitor that this rank is there. Raises if the driver gave the run up meanwhile."""
    here = ray.get_runtime_context()
    join = worker.work.monitor.join.remote(worker.group.attempt, worker.rank, here.current_actor, here.get_node_id())
    try:
        over = ray.get(join)
    except ray.exceptions.RayActorError:
        over = "the driver is gone"
    if over is not None:
        raise KeyboardInterrupt(over)


@contextlib.contextmanager
def _sending_heartbeats(worker: GroupWorker) -> Iterator[None]:
    """Sends the worker's status from a thread of its own, and once more at the end. The answer may ask it to stop."""
    done = threading.Event()

    def beat() -> Any:
        return worker.work.monitor.beat.remote(worker.group.attempt, worker.rank, worker.status.snapshot())

    def keep_beating() -> None:
        while not done.wait(_BEAT_SECS):
            with contextlib.suppress(ray.exceptions.RayError):
                worker.is_asked_to_stop = ray.get(beat(), timeout=_ANSWER_SECS)

    thread = threading.Thread(target=keep_beating, name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        # Where the node dies under it, the error of training counts, and not that of telling it.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(beat(), timeout=_ANSWER_SECS)
