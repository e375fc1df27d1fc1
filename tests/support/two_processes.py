"""Two ranks of the engine in two plain processes, without Ray.

A fork server imports TensorFlow once, before any session, and forks each rank and each task from there. `TwoProcesses`
is a runtime as the one on Ray is: user code is serialized, and opened in another process.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import socket
import sys
import types
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import pytest

from ray_estimator._driver.job_builder import JobBuilder
from ray_estimator._engine import entrypoints
from ray_estimator._jobs.jobs import EvaluateJob, PredictJob, TrainJob
from ray_estimator._jobs.remote_errors import RemoteFailure
from ray_estimator._jobs.results import TrainResult
from ray_estimator._jobs.serialization import Packed, pack
from ray_estimator._jobs.worker import WorkerStatus
from ray_estimator._process.signals import Stop
from ray_estimator.config import RunConfig

T = TypeVar("T")

TIMEOUT_SECS = 150.0
GRACE_SECS = 20.0
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["ray.train", "tensorflow", "keras", "ray_estimator._engine.train"])


@dataclass
class RankProcess:
    """A `Worker` in a process of its own, connected with the one other rank."""

    rank: int
    peer: Connection
    status: WorkerStatus = field(default_factory=WorkerStatus)
    addresses: tuple[str, ...] = ()
    rows: None = None
    attempt: int = 1
    num_cpus: int = 1
    is_asked_to_stop: bool = False

    def exchange(self, topic: str, value: T) -> list[T]:
        """Both ranks' values. Rank 0 sends first, so that no pipe fills up on both sides."""
        try:
            if self.rank == 0:
                self.peer.send((topic, value))
                its_topic, its_value = self.peer.recv()
            else:
                its_topic, its_value = self.peer.recv()
                self.peer.send((topic, value))
        except (OSError, EOFError) as error:
            raise _peer_lost() from error
        assert its_topic == topic, f"Rank {self.rank} exchanges {topic}, the other one {its_topic}."
        return [value, its_value] if self.rank == 0 else [its_value, value]


def _peer_lost() -> Exception:
    import tensorflow as tf

    lost: Exception = tf.errors.UnavailableError(None, None, "The other rank has ended.")
    return lost


class TwoProcesses:
    """A runtime that trains in two processes of this machine, and does all else in one."""

    def __init__(self, config: RunConfig) -> None:
        assert config.num_workers == 2
        assert not config.legacy_keras, "The fork server has imported TensorFlow with Keras 3."

    def pack(self, parts: Mapping[str, Any]) -> Packed:
        return pack(parts)

    def connect(self) -> None:
        pass

    def check_model_dir(self) -> None:
        pass

    def has_room(self) -> bool:
        return True

    def train(self, job: TrainJob, rows: None, stop: Stop) -> TrainResult:
        assert rows is None, "The blocks of a Ray Dataset need Ray."
        peers = SERVER.Pipe()
        result: TrainResult = results_of([(_train, job, rank, peer) for rank, peer in enumerate(peers)], peers)[0]
        return result

    def evaluate(self, job: EvaluateJob, rows: None, *, one_task: bool) -> dict[str, Any]:
        results: dict[str, Any] = self.run(entrypoints.evaluate, job)
        return results

    def predict(self, job: PredictJob, rows: None, *, one_task: bool) -> Generator[Any]:
        yield from self.run(_predict, job)

    def run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        assert not kwargs
        return results_of([(fn, *args)])[0]


def results_of(calls: list[tuple[Any, ...]], given_away: tuple[Connection, ...] = ()) -> list[Any]:
    """Calls each function in a fork of its own, all at once. An error of one ends all, and is raised here."""
    processes, outcomes = [], []
    for rank, (fn, *args) in enumerate(calls):
        outcome, sender = SERVER.Pipe(duplex=False)
        # Not daemonic: a program that runs in such a process has ranks of its own.
        process = SERVER.Process(target=_run, args=(sender, dict(os.environ), f"rank {rank}", fn, args))
        with main_module_hidden():
            process.start()
        sender.close()
        processes.append(process)
        outcomes.append(outcome)
    for connection in given_away:
        connection.close()
    try:
        return _received(outcomes)
    finally:
        for process in processes:
            process.kill()
            process.join()
        for outcome in outcomes:
            outcome.close()


@contextlib.contextmanager
def main_module_hidden() -> Iterator[None]:
    """Within it, a process that starts imports no main module: that of a program is not meant to be imported."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _received(outcomes: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    failures: list[RemoteFailure] = []
    while len(results) < len(outcomes):
        waiting = [outcome for rank, outcome in enumerate(outcomes) if rank not in results]
        # After an error of its own, the other rank may raise the same, and publish what it has saved.
        ready = wait(waiting, GRACE_SECS if failures else TIMEOUT_SECS)
        if not ready:
            assert failures, f"Only {sorted(results)} have ended."
            break
        for outcome in ready:
            assert isinstance(outcome, Connection)
            rank = outcomes.index(outcome)
            try:
                results[rank] = outcome.recv()
            except EOFError:
                raise AssertionError(f"Process {rank} died.") from None
            if isinstance(results[rank], RemoteFailure):
                failures.append(results[rank])
    if failures:
        raise min(failures, key=lambda failure: failure.peers_lost).error()
    return [results[rank] for rank in range(len(outcomes))]


def output_of(code: str) -> str:
    """What `code` prints in a fork that has imported TensorFlow, and nothing of what tests define."""
    (printed,) = results_of([(_printed, code)])
    return str(printed).strip()


def _printed(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {"__name__": "__main__"})
    return out.getvalue()


def _run(
    sender: Connection, environment: dict[str, str], where: str, fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    try:
        result = fn(*args)
    except BaseException as error:
        result = RemoteFailure.of(error, where, has_peers=True)
    sender.send(result)
    # The server of a strategy would wait for its group.
    os._exit(0)


def _train(job: TrainJob, rank: int, peer: Connection) -> TrainResult:
    worker = RankProcess(rank, peer)
    os.environ["TF_GRPC_REUSE_PORT"] = "1"
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        worker.addresses = tuple(worker.exchange("address", f"127.0.0.1:{held.getsockname()[1]}"))
        return entrypoints.train(job, worker)


def _predict(job: PredictJob) -> list[Any]:
    return list(entrypoints.predict(job))


def use_two_processes(patches: pytest.MonkeyPatch) -> None:
    """Lets every Estimator with two workers use this runtime."""
    of_config = JobBuilder.runtime

    def runtime(self: JobBuilder) -> Any:
        return TwoProcesses(self.config) if self.config.num_workers == 2 else of_config(self)

    patches.setattr(JobBuilder, "runtime", runtime)
