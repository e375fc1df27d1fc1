"""Ray tasks: they find a place in time or fail, begin anew when their worker dies, raise what their function did."""

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
from ray_estimator._process.signals import uninterrupted
from ray_estimator._runtime.logs import levels, speak_as
from ray_estimator._runtime.resources import amounts
from ray_estimator._runtime.tasks import gpu_reclaim
from ray_estimator._runtime.tasks.watchdog import Patience, watched
from ray_estimator.config import RunConfig
from ray_estimator.errors import ResourcesTimeoutError, TaskLostError, TaskTimeoutError

logger = logging.getLogger(__name__)

_TRIES = 8
_STALLS = 2
_SAY_SECS = 10.0
_AHEAD = 8
_LOST = (WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError, LocalRayletDiedError)
LEGACY_KERAS = {"TF_USE_LEGACY_KERAS": "1"}


class Home(NamedTuple):
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
        what: str,
        fn: Callable[..., Any],
        *args: Any,
        drives_data: bool = False,
        stall_secs: float | None = None,
    ) -> Task:
        """Starts `fn`: its results if it is a generator function, else its only result, come from the `Task`.

        Args:
            what: The task in words, for logs and errors.
            fn: A module-level function.
            args: What it gets; references to objects arrive as the objects.
            drives_data: Whether it drives Ray Data itself; then it holds no CPU, since Ray Data may need it.
            stall_secs: How long it may go on without a batch or a result; None for ever.
        """
        asked = self._asked(drives_data=drives_data)
        streaming = {"num_returns": "streaming", "_generator_backpressure_num_objects": _AHEAD}
        # Ray would try again without a deadline, and would not say of whom it speaks.
        options = {**self.options(drives_data=drives_data), **streaming, "max_retries": 0}
        patience = Patience.of(stall_secs)
        run = _remote_run().options(**options).remote
        submit = functools.partial(run, levels(), self.num_cpus, patience, fn, *args)
        return Task(what, submit, asked, self._config.start_timeout_secs, patience)

    def options(self, *, drives_data: bool = False) -> dict[str, Any]:
        """What a task asks for, as Ray's options."""
        asked = self._asked(drives_data=drives_data)
        return {
            "num_cpus": asked.pop("CPU"),
            # num_gpus in the decorator would end the process after each call; in the options it stays warm.
            "num_gpus": asked.pop("GPU", 0),
            "memory": asked.pop("memory", None),
            "resources": asked,
            "runtime_env": self.runtime_env,
        }

    @property
    def num_cpus(self) -> float:
        """CPUs of a task."""
        return self._asked()["CPU"]

    def has_room(self) -> bool:
        """Whether what one task takes is free in the cluster now."""
        free = ray.available_resources()
        return all(free.get(name, 0.0) >= amount for name, amount in self._asked().items())

    def in_flight(self) -> int:
        """How many tasks to start before the first one ended: twice as many as fit, so that none has to wait."""
        if self._config.max_tasks_in_flight is not None:
            return self._config.max_tasks_in_flight
        cluster = ray.cluster_resources()
        fit = [cluster.get(name, 0.0) // amount for name, amount in self._asked().items() if amount > 0]
        return max(2, 2 * int(min(fit, default=1)))

    def _asked(self, *, drives_data: bool = False) -> dict[str, float]:
        return {"CPU": 1.0, **(self._config.task_resources or {}), **({"CPU": 0.0} if drives_data else {})}


class Task:
    """The results of one task, in order. A worker that dies is replaced, and what was given already is passed over."""

    def __init__(
        self,
        what: str,
        submit: Callable[[], Any],
        asked: Mapping[str, float],
        timeout_secs: float | None,
        patience: Patience | None,
    ) -> None:
        self._what = what
        self._submit = submit
        self._asked = asked
        self._timeout_secs = math.inf if timeout_secs is None else timeout_secs
        self._patience = patience
        self._refs = submit()
        self._home: Home | None = None
        self._given = 0
        self._to_pass_over = 0
        self._losses = 0
        self._stalls = 0
        self._is_over = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next result.

        Raises:
            ResourcesTimeoutError: The task found no place in time.
            TaskLostError: Its worker died each time.
            TaskTimeoutError: It stood still each time.
            Exception: What the function raised, as itself.
        """
        while True:
            try:
                value, failure = self._next()
            except _LOST as lost:
                self._begin_again(lost)
                continue
            except StopIteration:
                self._is_over = True
                raise
            if failure is not None:
                self._is_over = True
                raise failure.error()
            self._given += 1
            return value

    def cancel(self) -> None:
        """Ends it, unless it has told its end; one that has begun ends between two calls of TensorFlow.

        Ray 2.60 ends the driver's process now and then if a streaming task is cancelled just when it comes to its end.
        """
        if not self._is_over:
            ray.cancel(self._refs, force=False)

    def leave(self) -> None:
        """Ends it if it has not begun; else it goes to its end, and nobody keeps what it gives."""
        if self._home is None:
            self.cancel()
        self._refs = None

    def _next(self) -> Any:
        if self._home is None:
            self._home = self._wait_for_place()
            if self._asked.get("GPU"):
                gpu_reclaim.remember(*self._home)
        while self._to_pass_over:
            ray.get(next(self._refs))
            self._to_pass_over -= 1
        return ray.get(next(self._refs))

    def _wait_for_place(self) -> Home:
        deadline = time.monotonic() + self._timeout_secs
        said = False
        while True:
            remaining = max(deadline - time.monotonic(), 0.0)
            ready, _ = ray.wait([self._refs], timeout=min(remaining, _SAY_SECS), fetch_local=False)
            if ready:
                home: Home = ray.get(next(self._refs))
                return home
            free = amounts(ray.available_resources())
            if time.monotonic() >= deadline:
                self.cancel()
                cluster = amounts(ray.cluster_resources())
                raise ResourcesTimeoutError([dict(self._asked)], cluster, free, self._timeout_secs, "task_resources")
            if not said:
                logger.warning("%s waits for a place: it asks for %s; free are %s.", self._what, self._asked, free)
                said = True

    def _begin_again(self, lost: BaseException) -> None:
        stack = None if self._patience is None else self._patience.where_it_stood()
        if self._patience is not None and stack is not None:
            self._stalls += 1
            if self._stalls == _STALLS:
                error = TaskTimeoutError(self._what, self._stalls, self._patience.secs)
                error.add_note(f"Where it stood:\n{stack}")
                raise error from lost
        self._losses += 1
        if self._losses == _TRIES:
            raise TaskLostError(self._what, self._losses, type(lost).__name__) from lost
        because = type(lost).__name__ if stack is None else "it stood still"
        logger.warning("%s lost its worker (%s); it begins anew.", self._what, because)
        self._home, self._to_pass_over = None, self._given
        self._refs = self._submit()


def _runtime_env(config: RunConfig) -> dict[str, Any] | None:
    env = dict(config.worker_runtime_env or {})
    if config.legacy_keras:
        env["env_vars"] = {**LEGACY_KERAS, **env.get("env_vars", {})}
    return env or None


@functools.cache
def _remote_run() -> Any:
    """Made once: Ray pickles a function anew for each remote function that is made of it."""
    return ray.remote(_run)


# In the task


def _run(
    log_levels: Mapping[str, int], num_cpus: float, patience: Patience | None, fn: Callable[..., Any], *args: Any
) -> Generator[Any]:
    """First where it runs, then (result, None) for each result, or (None, failure): errors travel as themselves."""
    yield Home(ray.get_runtime_context().get_node_id(), os.getpid())
    speak_as(log_levels)
    try:
        with uninterrupted():
            entrypoints.import_engine(num_cpus)
        with contextlib.closing(watched(_results(fn, *args), patience)) as results:
            for result in results:
                yield result, None
    except Exception as error:
        yield None, RemoteFailure.of(error, "a task")


def _results(fn: Callable[..., Any], *args: Any) -> Generator[Any]:
    """What a generator function gives; else the only result."""
    results = fn(*args)
    if isinstance(results, Generator):
        yield from results
    else:
        yield results
