"""Processes of tasks stay warm and keep their GPU memory, while Ray takes their GPUs for free: training ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_IDLE_SECS = 2.0
_ANSWER_SECS = 30.0
_LOOK_SECS = 0.05
_TITLE, _IDLE_TITLE = b"ray::", b"ray::IDLE"

_pids_of_nodes: dict[str, set[int]] = {}
"""Where tasks of this driver, of any Estimator, had a GPU."""


def remember(node_id: str, pid: int) -> None:
    """Notes that a task with a GPU runs in this process. On the driver."""
    _pids_of_nodes.setdefault(node_id, set()).add(pid)


def release(runtime_env: dict[str, Any] | None) -> None:
    """Ends the processes that were remembered and are idle. Waits for nodes only so long, and raises nothing of Ray's.

    Args:
        runtime_env: That of tasks.
    """
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} if _pids_of_nodes else set()
    remembered = {node_id: pids for node_id, pids in _pids_of_nodes.items() if node_id in alive}
    _pids_of_nodes.clear()
    if not remembered:
        return
    # The process of a task that releases ends too: Ray may have chosen one of those that are to end.
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0, runtime_env=runtime_env)(_end_idle)
    nodes_of_answers = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(pids): node_id
        for node_id, pids in remembered.items()
    }
    answers, _ = ray.wait(list(nodes_of_answers), num_returns=len(nodes_of_answers), timeout=_ANSWER_SECS)
    for answer in answers:
        with contextlib.suppress(ray.exceptions.RayError):  # The node has gone, and its processes with it.
            for pid in ray.get(answer):
                remember(nodes_of_answers[answer], pid)


def _end_idle(pids: Collection[int]) -> set[int]:
    """Ends the idle processes among `pids`; gives those that are still busy. Runs as a task on their node."""
    deadline = time.monotonic() + _IDLE_SECS
    left = set(pids) - {os.getpid()}
    while True:
        titles = {pid: _title(pid) for pid in left}
        # One that has ended has no title, and a pid may be somebody else's by now.
        left = {pid for pid in left if titles[pid].startswith(_TITLE)}
        for pid in left:
            if titles[pid].startswith(_IDLE_TITLE):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(_LOOK_SECS)  # One whose task has just ended is idle in a moment.


def _title(pid: int) -> bytes:
    """What the process says of itself; Ray says there what runs."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
