"""Kill idle task processes before training on GPUs: they keep their GPU memory, while Ray counts their GPUs as free."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, TaskUnschedulableError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_estimator._runtime import ray_private

logger = logging.getLogger(__name__)

_IDLE_SECS = 2.0
_ANSWER_SECS = 30.0
_POLL_SECS = 0.05
_NODE_GONE = (NodeDiedError, TaskUnschedulableError, WorkerCrashedError)

_pids_by_node: dict[str, set[int]] = {}
"""Processes in which tasks of this driver, of any Estimator, had a GPU."""


def remember(node_id: str, pid: int) -> None:
    """Record that a task with a GPU runs in a process. On the driver."""
    _pids_by_node.setdefault(node_id, set()).add(pid)


def release(runtime_env: dict[str, Any] | None) -> None:
    """Kill the recorded processes that are idle, within a deadline. Logs nodes where that fails.

    Args:
        runtime_env: The tasks' runtime environment.
    """
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} if _pids_by_node else set()
    recorded = {node_id: pids for node_id, pids in _pids_by_node.items() if node_id in alive}
    _pids_by_node.clear()
    if not recorded:
        return
    # max_calls: the process of this task ends too. Ray may run the task in one of the idle processes.
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0, runtime_env=runtime_env)(_kill_idle_on_this_node)
    nodes_of_answers = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(pids): node_id
        for node_id, pids in recorded.items()
    }
    answers, _ = ray.wait(list(nodes_of_answers), num_returns=len(nodes_of_answers), timeout=_ANSWER_SECS)
    for answer in answers:
        node_id = nodes_of_answers[answer]
        try:
            busy = ray.get(answer)
        except _NODE_GONE:
            continue
        except ray.exceptions.RayError as error:
            logger.warning("Idle task processes on node %s keep their GPU memory: %s", node_id, error)
            continue
        for pid in busy:
            remember(node_id, pid)


def _kill_idle_on_this_node(pids: Collection[int]) -> set[int]:
    own_title = _title(os.getpid())
    if not ray_private.is_ray_process(own_title):
        raise RuntimeError(f"Ray {ray.__version__} gives its processes unknown titles, got {own_title!r}.")
    return _kill_idle(pids)


def _kill_idle(pids: Collection[int]) -> set[int]:
    """Kill the idle processes among `pids`; return those that are still busy."""
    deadline = time.monotonic() + _IDLE_SECS
    remaining = set(pids) - {os.getpid()}
    while True:
        titles = {pid: _title(pid) for pid in remaining}
        # A process that ended has no title, and its pid may have been reused.
        remaining = {pid for pid in remaining if ray_private.is_ray_process(titles[pid])}
        for pid in remaining:
            if ray_private.is_idle_process(titles[pid]):
                with contextlib.suppress(ProcessLookupError):  # It has ended by itself.
                    os.kill(pid, signal.SIGKILL)
        if not remaining or time.monotonic() >= deadline:
            return remaining
        time.sleep(_POLL_SECS)  # A process becomes idle shortly after its task.


def _title(pid: int) -> bytes:
    """Return the title of a process, in which Ray names the task that runs; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
