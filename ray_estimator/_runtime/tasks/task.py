"""Ray tasks with a start deadline: retried when their worker dies, and raising the errors of their function."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    WorkerCrashedError,
)

from ray_estimator._engine import entrypoints
from ray_estimator._jobs.remote_errors import RemoteFailure
from ray_estimator._process import legacy_keras
from ray_estimator._process.signals import uninterrupted
from ray_estimator._runtime import ray_private
from ray_estimator._runtime.logs import log_levels, set_log_levels
from ray_estimator._runtime.resources import readable
from ray_estimator._runtime.tasks import gpu_reclaim
from ray_estimator._runtime.tasks.watchdog import StallTimeout, with_watchdog
from ray_estimator.config import RunConfig
from ray_estimator.errors import ResourcesTimeoutError, TaskLostError, TaskTimeoutError

logger = logging.getLogger(__name__)

_TRIES = 8
_STALLS = 2
_NOTICE_SECS = 10.0
_MAX_PENDING_RESULTS = 8
_LOST = (WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError, LocalRayletDiedError)


class TaskProcess(NamedTuple):
    """The process in which a task runs."""

    node_id: str
    pid: int


class Tasks:
    """Starts tasks with the resources and the environment of a `RunConfig`. On the driver."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self.runtime_env = _runtime_env(config)

    def start(
        self,
        name: str,
        fn: Callable[..., Any],
        *args: Any,
        drives_data: bool = False,
        stall_secs: float | None = None,
    ) -> Task:
        """Start `fn` as a task, which yields the results of a generator function, or the result of any other.

        Args:
            name: Name of the task for logs and errors.
            fn: A module-level function.
            args: Its arguments; object references are passed as the objects.
            drives_data: Whether it drives Ray Data; then it takes no CPU, which Ray Data may need.
            stall_secs: Limit of the time without a batch or a result. None: no limit.
        """
        requested = self._requested(drives_data=drives_data)
        # Ray's own retries have no deadline, and its log lines do not name the task.
        streaming = ray_private.streaming_options(_MAX_PENDING_RESULTS)
        options = {**self.options(drives_data=drives_data), **streaming, "max_retries": 0}
        stall_timeout = StallTimeout.of(stall_secs)
        run = _remote_run().options(**options).remote
        submit = functools.partial(run, log_levels(), self.num_cpus, stall_timeout, fn, *args)
        return Task(name, submit, requested, self._config.start_timeout_secs, stall_timeout)

    def options(self, *, drives_data: bool = False) -> dict[str, Any]:
        """Return Ray's options for a task."""
        requested = self._requested(drives_data=drives_data)
        return {
            "num_cpus": requested.pop("CPU"),
            # num_gpus in the decorator would end the process after each call; as an option it keeps the process warm.
            "num_gpus": requested.pop("GPU", 0),
            "memory": requested.pop("memory", None),
            "resources": requested,
            "runtime_env": self.runtime_env,
        }

    @property
    def num_cpus(self) -> float:
        """CPUs of a task."""
        return self._requested()["CPU"]

    def has_room(self) -> bool:
        """Return whether the cluster has the resources of one task free."""
        free = ray.available_resources()
        return all(free.get(name, 0.0) >= amount for name, amount in self._requested().items())

    def max_in_flight(self) -> int:
        """Return how many tasks to submit at a time: twice as many as fit, so that a free slot is filled at once."""
        if self._config.max_tasks_in_flight is not None:
            return self._config.max_tasks_in_flight
        cluster = ray.cluster_resources()
        fit = [cluster.get(name, 0.0) // amount for name, amount in self._requested().items() if amount > 0]
        return max(2, 2 * int(min(fit, default=1)))

    def _requested(self, *, drives_data: bool = False) -> dict[str, float]:
        return {"CPU": 1.0, **(self._config.task_resources or {}), **({"CPU": 0.0} if drives_data else {})}


class Task:
    """An iterator over the results of one task, in order.

    If the worker dies, the task runs again, and the results that were returned already are skipped.
    """

    def __init__(
        self,
        name: str,
        submit: Callable[[], Any],
        requested: Mapping[str, float],
        timeout_secs: float | None,
        stall_timeout: StallTimeout | None,
    ) -> None:
        self._name = name
        self._submit = submit
        self._requested = requested
        self._timeout_secs = math.inf if timeout_secs is None else timeout_secs
        self._stall_timeout = stall_timeout
        self._refs = submit()
        self._process: TaskProcess | None = None
        self._num_returned = 0
        self._num_to_skip = 0
        self._losses = 0
        self._stalls = 0
        self._has_ended = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Return the next result.

        Raises:
            ResourcesTimeoutError: The task could not be scheduled in time.
            TaskLostError: Its worker died at every attempt.
            TaskTimeoutError: It hung at every attempt.
            Exception: The function raised; the error keeps its type.
        """
        while True:
            try:
                value, failure = self._next()
            except _LOST as lost:
                self._retry(lost)
                continue
            except StopIteration:
                self._has_ended = True
                raise
            if failure is not None:
                self._has_ended = True
                raise failure.error()
            self._num_returned += 1
            return value

    def cancel(self) -> None:
        """Cancel the task unless it has ended; a running one ends between two calls of TensorFlow.

        Ray 2.60 sometimes crashes the driver when a streaming task is cancelled just as it ends.
        """
        if not self._has_ended:
            ray.cancel(self._refs, force=False)

    def abandon(self) -> None:
        """Cancel the task if it has not started; otherwise let it finish, and drop its results."""
        if self._process is None:
            self.cancel()
        self._refs = None

    def _next(self) -> Any:
        if self._process is None:
            self._process = self._wait_for_start()
            if self._requested.get("GPU"):
                gpu_reclaim.remember(*self._process)
        while self._num_to_skip:
            ray.get(next(self._refs))
            self._num_to_skip -= 1
        return ray.get(next(self._refs))

    def _wait_for_start(self) -> TaskProcess:
        deadline = time.monotonic() + self._timeout_secs
        has_logged = False
        while True:
            remaining = max(deadline - time.monotonic(), 0.0)
            ready, _ = ray.wait([self._refs], timeout=min(remaining, _NOTICE_SECS), fetch_local=False)
            if ready:
                process: TaskProcess = ray.get(next(self._refs))
                return process
            free = readable(ray.available_resources())
            if time.monotonic() >= deadline:
                self.cancel()
                cluster = readable(ray.cluster_resources())
                raise ResourcesTimeoutError(
                    [dict(self._requested)], cluster, free, self._timeout_secs, "task_resources"
                )
            if not has_logged:
                logger.warning(
                    "%s waits to be scheduled: it requests %s, and %s is free.", self._name, self._requested, free
                )
                has_logged = True

    def _retry(self, lost: BaseException) -> None:
        stack = None if self._stall_timeout is None else self._stall_timeout.pop_stack()
        if self._stall_timeout is not None and stack is not None:
            self._stalls += 1
            if self._stalls == _STALLS:
                error = TaskTimeoutError(self._name, self._stalls, self._stall_timeout.secs)
                error.add_note(f"Stack trace of the hang:\n{stack}")
                raise error from lost
        self._losses += 1
        if self._losses == _TRIES:
            raise TaskLostError(self._name, self._losses, type(lost).__name__) from lost
        reason = type(lost).__name__ if stack is None else "it made no progress and was killed"
        logger.warning("%s lost its worker (%s). Retrying.", self._name, reason)
        self._process, self._num_to_skip = None, self._num_returned
        self._refs = self._submit()


def _runtime_env(config: RunConfig) -> dict[str, Any] | None:
    env = dict(config.worker_runtime_env or {})
    if config.legacy_keras:
        env["env_vars"] = {**legacy_keras.ENABLED, **env.get("env_vars", {})}
    return env or None


@functools.cache
def _remote_run() -> Any:
    """Return the remote function. Cached: Ray pickles the function again for each remote function made of it."""
    return ray.remote(_run)


# In the task


def _run(
    log_levels: Mapping[str, int],
    num_cpus: float,
    stall_timeout: StallTimeout | None,
    fn: Callable[..., Any],
    *args: Any,
) -> Generator[Any]:
    """Yield the process first, then (result, None) for each result, or (None, failure) for an error."""
    yield TaskProcess(ray.get_runtime_context().get_node_id(), os.getpid())
    set_log_levels(log_levels)
    try:
        with uninterrupted():
            entrypoints.import_engine(num_cpus)
        with contextlib.closing(with_watchdog(_results(fn, *args), stall_timeout)) as results:
            for result in results:
                yield result, None
    except Exception as error:  # The driver raises it.
        yield None, RemoteFailure.of(error, "a task")


def _results(fn: Callable[..., Any], *args: Any) -> Generator[Any]:
    """Yield the results of a generator function, or the result of any other."""
    results = fn(*args)
    if isinstance(results, Generator):
        yield from results
    else:
        yield results
