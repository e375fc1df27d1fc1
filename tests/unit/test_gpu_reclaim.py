"""Which task processes are killed to free their GPU memory for training."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from unittest.mock import MagicMock, Mock

import pytest
import ray

from ray_estimator._runtime.tasks import gpu_reclaim


@contextlib.contextmanager
def process(title: str) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([title], executable="cat", stdin=pipe, stdout=pipe) as started:
        try:
            assert started.stdin
            assert started.stdout
            started.stdin.write(b"up\n")
            started.stdin.flush()
            assert started.stdout.readline() == b"up\n"  # It has its title once it runs.
            yield started
        finally:
            started.kill()


def test_only_idle_processes_of_ray_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_reclaim, "_IDLE_SECS", 0.2)
    with process("ray::IDLE") as idle, process("ray::_run") as busy, process("python") as unrelated:
        assert gpu_reclaim._kill_idle([idle.pid, busy.pid, unrelated.pid]) == {busy.pid}
        assert idle.wait(timeout=10) == -9
        assert busy.poll() is None
        assert unrelated.poll() is None


def test_unknown_process_titles_are_an_error_of_the_task() -> None:
    with process("python") as unrelated, pytest.raises(RuntimeError, match=r"unknown titles, got b'"):
        gpu_reclaim._kill_idle_on_this_node([unrelated.pid])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ray.exceptions.RaySystemError("no answer"), ["Idle task processes on node a keep their GPU memory"]),
        (ray.exceptions.WorkerCrashedError(), []),
    ],
)
def test_processes_that_cannot_be_killed_are_logged_unless_their_node_is_gone(
    error: Exception, expected: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "a", "Alive": True}])
    monkeypatch.setattr(ray, "remote", MagicMock())
    monkeypatch.setattr(ray, "wait", lambda answers, **_: (answers, []))
    monkeypatch.setattr(ray, "get", Mock(side_effect=error))
    monkeypatch.setattr(gpu_reclaim, "NodeAffinitySchedulingStrategy", Mock())
    gpu_reclaim.remember("a", 1)
    gpu_reclaim.release(None)
    assert [message.partition(":")[0] for message in caplog.messages] == expected


def test_dead_nodes_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "gone", "Alive": False}])
    gpu_reclaim.remember("gone", 1)
    gpu_reclaim.release(None)
    assert not gpu_reclaim._pids_by_node
