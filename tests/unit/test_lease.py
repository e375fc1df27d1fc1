"""The lease: one driver writes, later ones are refused, suspended ones are fenced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_estimator._checkpoints import lease as lease_module
from ray_estimator._checkpoints.fence import claim
from ray_estimator._checkpoints.lease import TAKEOVER_SECS, Lease, acquire, hold
from ray_estimator._checkpoints.writers import Record, Token
from ray_estimator._process import identity
from ray_estimator._process.identity import Process
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import ModelDirInUseError, TrainingError, WriterFencedError

STORAGE = Storage()
ME = Process.current()
ELSEWHERE = Process("elsewhere", 77, "another boot", 5)


class Clock:
    """A clock that advances only by waiting, with a callback during the wait."""

    def __init__(self, while_waiting: Callable[[], Any] = lambda: None) -> None:
        self.now = 1000.0
        self.while_waiting = while_waiting

    def __call__(self) -> float:
        return self.now

    def wait(self, secs: float) -> None:
        self.now += secs
        self.while_waiting()


@pytest.fixture(params=["file", "memory"])
def model_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield str(tmp_path / "model")
        return
    url = f"memory://{uuid.uuid4().hex}/model"
    yield url
    STORAGE.remove_dir(url)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def taken(model_dir: str, clock: Clock) -> Callable[..., Lease]:
    def take_as(process: Process | None = None) -> Lease:
        return acquire(model_dir, STORAGE, process=process, clock=clock, wait=clock.wait)

    return take_as


def writers_of(model_dir: str) -> list[str]:
    return STORAGE.list_dir(STORAGE.join(model_dir, ".writers"))


def record_of(model_dir: str, name: str) -> dict[str, Any]:
    return dict(json.loads(STORAGE.read_bytes(STORAGE.join(model_dir, ".writers", name))))


# Acquisition


def test_the_first_driver_acquires_the_lease_immediately(
    taken: Callable[..., Lease], model_dir: str, clock: Clock
) -> None:
    lease = taken()

    assert (lease.generation, clock.now) == (1, 1000.0)
    record = record_of(model_dir, "00000001.json")
    assert (record["writer"]["host"], record["writer"]["pid"]) == (ME.host, os.getpid())
    lease.release()


def test_a_released_lease_is_free_immediately_and_generations_grow(taken: Callable[..., Lease], clock: Clock) -> None:
    generations = []
    for process in (None, None, ELSEWHERE, None):
        lease = taken(process)
        generations.append(lease.generation)
        lease.release()

    assert (generations, clock.now) == ([1, 2, 3, 4], 1000.0)


def race(processes: Sequence[Process], model_dir: str) -> tuple[list[Lease], list[Exception]]:
    """Acquire the lease concurrently from a thread per process; the losers see heartbeats of the winner."""
    start, won, one_at_a_time = threading.Barrier(len(processes)), threading.Event(), threading.Lock()
    winners: list[Lease] = []
    losers: list[Exception] = []

    def renew() -> None:
        assert won.wait(30)
        with one_at_a_time:
            winners[0].renew()

    def contend(process: Process) -> None:
        clock = Clock(renew)
        start.wait()
        try:
            winners.append(acquire(model_dir, STORAGE, process=process, clock=clock, wait=clock.wait))
            won.set()
        except Exception as error:
            losers.append(error)

    threads = [threading.Thread(target=contend, args=[process]) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners, losers


def test_eight_threads_of_a_driver_race_and_one_wins(model_dir: str) -> None:
    winners, losers = race([ME] * 8, model_dir)

    assert [winner.generation for winner in winners] == [1]
    assert [type(loser) for loser in losers] == [ModelDirInUseError] * 7
    winners[0].release()


def test_eight_hosts_race_for_a_dead_drivers_lease_and_one_wins(model_dir: str, taken: Callable[..., Lease]) -> None:
    taken(killed())
    hosts = [replace(ELSEWHERE, host=f"host-{number}") for number in range(8)]
    winners, losers = race(hosts, model_dir)

    assert [winner.generation for winner in winners] == [2]
    assert [type(loser) for loser in losers] == [ModelDirInUseError] * 7


def test_a_suspended_driver_does_not_acquire_a_deleted_generation(
    taken: Callable[..., Lease], model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(ELSEWHERE).release()
    create, others = Storage.create_bytes, []

    def late_create(storage: Storage, url: str, data: bytes) -> None:
        monkeypatch.setattr(Storage, "create_bytes", create)
        for _ in range(3):
            others.append(taken(ELSEWHERE))
            others[-1].release()
        assert writers_of(model_dir) == ["00000003.json", "00000004.json"]
        create(storage, url, data)

    monkeypatch.setattr(Storage, "create_bytes", late_create)
    lease = taken()

    assert lease.generation == 5
    lease.release()


def test_a_create_with_a_lost_response_succeeds(
    taken: Callable[..., Lease], model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Storage.create_bytes

    def sent_twice(storage: Storage, url: str, data: bytes) -> None:
        create(storage, url, data)
        create(storage, url, data)

    monkeypatch.setattr(Storage, "create_bytes", sent_twice)
    lease = taken()

    assert (lease.generation, writers_of(model_dir)) == (1, ["00000001.json"])
    lease.release()


def test_without_exclusive_creates_one_of_two_owners_is_fenced(
    taken: Callable[..., Lease], model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = taken()
    with monkeypatch.context() as weak:
        weak.setattr(Storage, "create_bytes", Storage.write_bytes)
        weak.setattr(Storage, "list_dir", lambda storage, url: [])
        other = taken(ELSEWHERE)

    other.renew()
    with pytest.raises(WriterFencedError, match="process 77 on elsewhere"):
        lease.renew()


# In use


def test_a_second_thread_of_the_driver_is_refused_immediately(
    taken: Callable[..., Lease], model_dir: str, clock: Clock
) -> None:
    lease = taken()

    with pytest.raises(ModelDirInUseError) as refused:
        taken()

    assert clock.now == 1000.0
    error = refused.value
    assert (error.model_dir, error.host, error.pid) == (model_dir, ME.host, os.getpid())
    assert error.since == record_of(model_dir, "00000001.json")["since"]
    assert f"process {os.getpid()} on host {ME.host}" in str(error)
    lease.release()


@pytest.mark.parametrize("owner", [ELSEWHERE, replace(ME, pid=os.getppid(), started=identity._start_of(os.getppid()))])
def test_a_driver_with_a_heartbeat_keeps_the_lease(
    owner: Process, taken: Callable[..., Lease], model_dir: str, clock: Clock
) -> None:
    lease = taken(owner)
    clock.while_waiting = lambda: lease.renew() if clock.now >= 1004 else None

    with pytest.raises(ModelDirInUseError, match=f"process {owner.pid} on host {owner.host}"):
        taken()

    assert clock.now < 1000 + TAKEOVER_SECS
    assert writers_of(model_dir) == ["00000001.json"]


def test_a_forked_child_neither_owns_nor_releases_the_lease(
    taken: Callable[..., Lease], model_dir: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = taken()
    clock.while_waiting = lease.renew
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: ME.pid + 1)
        lease.release()
        with pytest.raises(ModelDirInUseError):
            taken(replace(ME, pid=ME.pid + 1))
    assert not record_of(model_dir, "00000001.json")["released"]
    lease.release()


# Takeover


def waiting() -> subprocess.Popen[bytes]:
    """A process that waits for input."""
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def process_of(child: subprocess.Popen[bytes]) -> Process:
    process = replace(ME, pid=child.pid, started=identity._start_of(child.pid))
    assert not process.is_dead()
    return process


def killed() -> Process:
    """A process of this machine after a SIGKILL."""
    with waiting() as child:
        process = process_of(child)
        child.send_signal(signal.SIGKILL)
    return process


def test_the_lease_of_a_killed_driver_on_this_machine_is_free_immediately(
    taken: Callable[..., Lease], clock: Clock
) -> None:
    taken(killed())

    lease = taken()

    assert (lease.generation, clock.now) == (2, 1000.0)
    lease.release()


def test_a_zombie_process_is_dead() -> None:
    with waiting() as child:
        process = process_of(child)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.is_dead()


def test_a_process_whose_pid_was_reused_is_dead(taken: Callable[..., Lease], clock: Clock) -> None:
    assert ME.started is not None
    taken(replace(ME, pid=os.getppid(), started=ME.started - 10_000))

    lease = taken()

    assert (lease.generation, clock.now) == (2, 1000.0)
    lease.release()


def test_a_process_of_another_machine_is_never_known_to_be_dead() -> None:
    dead = killed()
    assert dead.is_dead()
    assert not replace(dead, machine="another boot").is_dead()
    assert not replace(dead, machine=None).is_dead()


def test_a_lease_that_this_process_failed_to_release_is_free_immediately(
    taken: Callable[..., Lease], clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease = taken()
    with monkeypatch.context() as broken:
        broken.setattr(Storage, "write_bytes", unreachable)
        lease.release()
    assert "the store is away" in caplog.text

    again = taken()

    assert (again.generation, clock.now) == (2, 1000.0)
    again.release()


def unreachable(storage: Storage, url: str, data: bytes) -> None:
    raise ConnectionError("the store is away")


def test_a_remote_driver_without_heartbeat_is_taken_over_after_30_seconds(
    taken: Callable[..., Lease], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    silent = taken(ELSEWHERE)

    lease = taken()

    assert (lease.generation, clock.now) == (2, 1030.0)
    assert "process 77 on elsewhere" in caplog.text
    with pytest.raises(WriterFencedError, match=f"process {os.getpid()} on"):
        silent.renew()
    lease.release()


def test_a_driver_that_dies_while_watched_is_taken_over_immediately(
    taken: Callable[..., Lease], model_dir: str, clock: Clock
) -> None:
    with waiting() as child:
        taken(process_of(child))

        def kill() -> None:
            child.kill()
            child.wait()

        clock.while_waiting = kill
        lease = taken()

    assert (lease.generation, clock.now) == (2, 1001.0)
    lease.release()


def test_a_lease_released_while_watched_is_acquired_immediately(taken: Callable[..., Lease], clock: Clock) -> None:
    leaving = taken(ELSEWHERE)
    clock.while_waiting = leaving.release

    lease = taken()

    assert (lease.generation, clock.now) == (2, 1001.0)
    lease.release()


def test_a_damaged_lease_file_is_taken_over_after_30_seconds(
    taken: Callable[..., Lease], model_dir: str, clock: Clock
) -> None:
    STORAGE.write_bytes(STORAGE.join(model_dir, ".writers", "00000009.json"), b"{")

    lease = taken()

    assert (lease.generation, clock.now) == (10, 1030.0)
    lease.release()


def test_other_files_are_not_deleted(taken: Callable[..., Lease], model_dir: str) -> None:
    STORAGE.write_bytes(STORAGE.join(model_dir, ".writers", "notes.txt"), b"mine")

    for _ in range(4):
        taken().release()

    assert writers_of(model_dir) == ["00000003.json", "00000004.json", "notes.txt"]


# Fencing


def test_tokens_are_ordered_by_generation_then_by_attempt() -> None:
    tokens = [Token(1), Token(1, 1), Token(1, 2), Token(2), Token(2, 1), Token(10), Token(10, 10_000)]

    assert sorted(reversed(tokens)) == tokens
    assert [Token.of(token.file_name) for token in tokens] == tokens
    assert Token.of("00000001.json.tmp") is None
    assert Token.of(".00000001.json") is None


def test_the_newest_attempt_writes_and_an_earlier_one_is_fenced(taken: Callable[..., Lease], model_dir: str) -> None:
    lease = taken()
    first = claim(model_dir, STORAGE, Token(lease.generation, 1))
    first()
    second = claim(model_dir, STORAGE, Token(lease.generation, 2))

    second()
    lease.renew()
    with pytest.raises(WriterFencedError, match=f"taken over by process {os.getpid()} on {ME.host}"):
        first()
    lease.release()
    second()


def test_an_attempt_resumed_late_cannot_claim(taken: Callable[..., Lease], model_dir: str) -> None:
    lease = taken()
    second = claim(model_dir, STORAGE, Token(lease.generation, 2))

    with pytest.raises(WriterFencedError):
        claim(model_dir, STORAGE, Token(lease.generation, 1))
    second()
    lease.release()


def test_the_attempts_of_an_earlier_driver_are_fenced_by_the_next_driver(
    taken: Callable[..., Lease], model_dir: str
) -> None:
    earlier = taken(killed())
    fence = claim(model_dir, STORAGE, Token(earlier.generation, 7))

    lease = taken()

    with pytest.raises(WriterFencedError):
        fence()
    with pytest.raises(WriterFencedError):
        claim(model_dir, STORAGE, Token(earlier.generation, 8))
    lease.release()


def test_a_fence_costs_one_listing(
    taken: Callable[..., Lease], model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence = claim(model_dir, STORAGE, Token(taken(ELSEWHERE).generation, 1))
    calls: list[str] = []
    locate = Storage._locate
    monkeypatch.setattr(Storage, "_locate", lambda storage, url: (calls.append(url), locate(storage, url))[1])

    fence()

    assert calls == [STORAGE.join(model_dir, ".writers")]


def test_the_files_of_earlier_writers_do_not_accumulate(taken: Callable[..., Lease], model_dir: str) -> None:
    for _ in range(5):
        lease = taken()
        for attempt in range(1, 8):
            claim(model_dir, STORAGE, Token(lease.generation, attempt))
        lease.release()

    assert writers_of(model_dir) == [
        *("00000004-0006.json", "00000004-0007.json", "00000004.json"),
        *("00000005-0006.json", "00000005-0007.json", "00000005.json"),
    ]


def test_old_files_that_cannot_be_deleted_are_only_logged(
    taken: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(storage: Storage, url: str) -> None:
        raise PermissionError("no deleting here")

    monkeypatch.setattr(Storage, "remove", refuse)
    for _ in range(3):
        taken().release()

    assert "no deleting here" in caplog.text


# During training


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECS", 0.01)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.usefixtures("fast")
def test_a_held_lease_is_renewed_until_it_is_released(model_dir: str) -> None:
    with hold(model_dir, STORAGE, on_loss=pytest.fail) as lease:
        wait_until(lambda: record_of(model_dir, "00000001.json")["beat"] >= 3)
        assert not record_of(model_dir, "00000001.json")["released"]

    assert lease.generation == 1
    assert record_of(model_dir, "00000001.json")["released"]
    assert "lease heartbeat" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.usefixtures("fast")
def test_an_error_releases_the_lease(model_dir: str) -> None:
    with pytest.raises(ZeroDivisionError), hold(model_dir, STORAGE, on_loss=pytest.fail):
        raise ZeroDivisionError

    assert record_of(model_dir, "00000001.json")["released"]


@pytest.mark.usefixtures("fast")
def test_an_unreachable_store_is_logged_and_retried(
    model_dir: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with hold(model_dir, STORAGE, on_loss=pytest.fail):
        with monkeypatch.context() as broken:
            broken.setattr(Storage, "write_bytes", unreachable)
            wait_until(lambda: "the store is away" in caplog.text)
            beat = record_of(model_dir, "00000001.json")["beat"]
        wait_until(lambda: record_of(model_dir, "00000001.json")["beat"] > beat)


@pytest.mark.usefixtures("fast")
def test_a_lost_lease_ends_the_training_with_the_fencing_error(model_dir: str, clock: Clock) -> None:
    given_up = threading.Event()
    successor = Record.begin(ELSEWHERE).to_bytes()

    def train() -> None:
        with hold(model_dir, STORAGE, on_loss=given_up.set):
            STORAGE.create_bytes(STORAGE.join(model_dir, ".writers", Token(2).file_name), successor)
            assert given_up.wait(30)
            raise TrainingError("given up")

    with pytest.raises(WriterFencedError, match="process 77 on elsewhere") as lost:
        train()

    assert isinstance(lost.value.__cause__, TrainingError)
    assert not record_of(model_dir, "00000002.json")["released"]
