"""`ray job submit` of examples/train_job.py: stopped in mid-training, submitted again, ended at its last step."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
WAIT_SECS = 180.0
pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Head:
    """A Ray head of its own with a dashboard, which wants a token; and what a user types beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._dashboard, *others = free_ports(5)
        names = ("port", "dashboard-agent-listen-port", "ray-client-server-port", "metrics-export-port")
        ports = [f"--{name}={port}" for name, port in zip(names, others, strict=True)]
        command = [*RAY, "start", "--head", "--block", "--num-cpus=3", f"--dashboard-port={self._dashboard}", *ports]
        # Jobs get it, too: time to publish a checkpoint when they are stopped, and `python` as it is here.
        environment = {**self._environment, "RAY_JOB_STOP_WAIT_TIME_S": "60"}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        with (folder / "head.log").open("w") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def job(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """``ray job``, as typed in the root of the repository."""
        address = f"http://127.0.0.1:{self._dashboard}"
        environment = {**self._environment, "RAY_ADDRESS": address, **environment}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*RAY, "job", *arguments], cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    def wait(self) -> None:
        """Returns when the head takes jobs."""
        deadline = time.monotonic() + WAIT_SECS
        while said(self.job("list")) is None:
            assert self._process.poll() is None, (self.folder / "head.log").read_text()
            assert time.monotonic() < deadline, "The dashboard does not answer."

    def end(self) -> None:
        """Ends the processes that it started, by their ids."""
        processes = [*psutil.Process(self._process.pid).children(recursive=True), psutil.Process(self._process.pid)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, left = psutil.wait_procs(processes, timeout=5)
        for process in left:
            process.kill()
        self._process.wait()

    @property
    def _environment(self) -> dict[str, str]:
        """Without what other Rays of this process and of this machine say."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
        token = self.folder / "token"
        if not token.exists():
            token.write_text(secrets.token_hex(16))
        ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        return {**kept, **ours, "HOME": str(self.folder), "RAY_TMPDIR": str(self.folder)}


def said(process: subprocess.Popen[str]) -> str | None:
    """What a command has said when it has ended; None if it failed."""
    output, _ = process.communicate(timeout=WAIT_SECS)
    return output if process.returncode == 0 else None


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def head() -> Iterator[Head]:
    # Not below pytest's folder: paths of Ray's sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head = Head(Path(folder))
        try:
            head.wait()
            yield head
        finally:
            head.end()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def saved_steps(model_dir: Path) -> list[int]:
    return sorted(int(path.suffixes[0][6:]) for path in model_dir.glob("model.ckpt-*.index"))


@pytest.mark.timeout(600)
def test_a_job_that_is_stopped_saves_its_step_and_goes_on_when_it_is_submitted_again(
    head: Head, tmp_path: Path
) -> None:
    model_dir = tmp_path / "model"
    command = ["submit", "--working-dir", ".", "--", "python", "examples/train_job.py", "--model-dir", str(model_dir)]
    assert f"ray job {' '.join(command[:6])}" in README

    without_token = head.job("list", RAY_AUTH_MODE="disabled")
    first = head.job(*command[:1], "--submission-id=first", *command[1:], "--max-steps=1000000", "--eval-every=50")
    wait_until(lambda: first.poll() is not None or max(saved_steps(model_dir), default=0) >= 50)
    assert first.poll() is None, first.communicate()[0]
    assert said(head.job("stop", "first")) is not None
    log, _ = first.communicate(timeout=WAIT_SECS)
    stopped = re.search(r"SIGTERM: stopped at step (\d+); the checkpoint of step \1 is published", log)
    assert stopped is not None, log[-4000:]
    assert "exported to" not in log
    assert said(without_token) is None
    last = int(stopped.group(1))
    assert saved_steps(model_dir)[-1] == last

    target = last + 120
    second = head.job(*command, f"--max-steps={target}")
    log, _ = second.communicate(timeout=WAIT_SECS)
    assert second.returncode == 0, log[-4000:]
    assert f"The input resumes after {last * 64} rows" in log
    assert re.search(rf"evaluated: .*'global_step': (np.int64\()?{target}\b", log), log[-4000:]
    assert saved_steps(model_dir)[-1] == target
    exported = re.search(r"^exported to (.*)$", log, flags=re.M)
    assert exported is not None
    assert (Path(exported.group(1)) / "saved_model.pb").exists()
