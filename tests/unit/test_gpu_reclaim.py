"""Which processes end so that training finds their GPUs' memory free."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

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
            assert started.stdout.readline() == b"up\n"  # Before it runs, it has no title.
            yield started
        finally:
            started.kill()


def test_idle_processes_end_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_reclaim, "_IDLE_SECS", 0.2)
    with process("ray::IDLE") as idle, process("ray::_run") as busy, process("python") as of_somebody_else:
        assert gpu_reclaim._kill_idle([idle.pid, busy.pid, of_somebody_else.pid]) == {busy.pid}
        assert idle.wait(timeout=10) == -9
        assert busy.poll() is None
        assert of_somebody_else.poll() is None


def test_nodes_that_are_gone_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "gone", "Alive": False}])
    gpu_reclaim.remember("gone", 1)
    gpu_reclaim.release(None)
    assert not gpu_reclaim._pids_by_node
