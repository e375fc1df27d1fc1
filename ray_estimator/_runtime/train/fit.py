"""Driving one training run on Ray Train: its `fit` in a thread, watched from the caller's."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ray_estimator._jobs.remote_errors import RemoteFailure
from ray_estimator._jobs.results import TrainResult
from ray_estimator._jobs.worker import GroupView
from ray_estimator._process.signals import Stop
from ray_estimator._reporting.progress import Progress
from ray_estimator._runtime.resources import amounts
from ray_estimator._runtime.train.metrics import RunMetrics
from ray_estimator._runtime.train.preemption import LeavingNodes
from ray_estimator._runtime.train.step_watchdog import StepWatch
from ray_estimator._runtime.train.worker_group import failure_in
from ray_estimator.config import RunConfig
from ray_estimator.errors import ResourcesTimeoutError, StepTimeoutError, TrainingError, WorkersLostError

_LOOK_SECS = 0.25
_ABANDON_SECS = 60.0

logger = logging.getLogger(__name__)


class Fit:
    """One training run, its `fit` in a thread and watched from the caller's.

    A wish to stop goes by way of the monitor to the chief, which stops all ranks at one step and publishes it. So it
    does when a node with a rank is going away; then another `fit` goes on elsewhere, and no failure is counted.

    Args:
        trainer: What to fit.
        monitor: Handle of the run's `RunMonitor`.
        config: Deadlines, and how many failures the run survives.
        progress: Shows what the monitor sees.
        stop: The caller's wish to stop.
    """

    def __init__(
        self,
        trainer: DataParallelTrainer,
        monitor: Any,
        config: RunConfig,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self._trainer = trainer
        self._monitor = monitor
        self._config = config
        self._progress = progress
        self._metrics = RunMetrics(str(config.model_dir))
        self._stop = stop
        self._stop_by: float | None = None
        self._has_passed_stop_on = False
        self._leaving = LeavingNodes()
        self._result: TrainResult | None = None
        self._error: BaseException | None = None
        self._hung: tuple[str | None, StepTimeoutError] | None = None
        # Not `Thread.join`: interrupted in it, CPython 3.11 takes the thread for ended.
        self._ended = threading.Event()

    def result(self) -> TrainResult:
        """Waits for the end of the run; gives the chief's result, or raises the one error that explains it."""
        thread = threading.Thread(target=self._fit, name="ray-train-fit", daemon=True)
        with _train_settings(self._config.start_timeout_secs):
            thread.start()
            try:
                self._watch()
            except BaseException as stop:
                self._abandon(f"the driver stopped waiting: {type(stop).__name__}")
                raise
        if self._error is not None:
            raise self._explained(self._error)
        assert self._result is not None, "Ray Train gave no result."
        return self._result

    def _fit(self) -> None:
        try:
            failed_starts = 0
            while True:
                self._fit_once()
                if self._may_move():
                    continue
                if not _says_start_failed(self._error) or 0 <= self._config.max_failures <= failed_starts:
                    return
                failed_starts += 1
        finally:
            self._ended.set()

    def _fit_once(self) -> None:
        self._result = self._error = None
        try:
            self._result = self._trainer.fit().return_value
        except BaseException as error:
            self._error = error

    def _may_move(self) -> bool:
        """Whether the group has stopped only to go on elsewhere."""
        if self._result is None or not self._result.cut_short or self._stop.why is not None:
            return False
        if self._leaving.takes_the_driver:
            self._error = TrainingError(
                f"The driver's own node is going away. Training has stopped at step {self._result.step}; start the "
                "driver again on another node, and it goes on from there."
            )
            return False
        logger.warning("Training goes on from step %d on other nodes.", self._result.step)
        return True

    def _watch(self) -> None:
        watch = StepWatch(self._config.step_timeout_secs, time.monotonic())
        while not self._ended.is_set():
            self._ended.wait(_LOOK_SECS)
            if self._stop.at_once:
                raise TrainingError("The run was given up by its driver.")
            view = self._view()
            if self._stop.why is not None:
                self._heed_stop(self._stop.why, view)
            if view is None:
                continue
            self._progress.show(view)
            self._metrics.show(view)
            self._heed_leaving(view)
            if self._hung is not None and self._hung[0] != view.attempt:
                self._hung = None
            overdue = watch.overdue(view, time.monotonic())
            if overdue is not None:
                logger.error("%s The group is ended.", overdue)
                self._hung = (view.attempt, overdue)
                _kill(view)

    def _heed_stop(self, why: str, view: GroupView | None) -> None:
        """Passes the wish to stop on, once, and gives the run up if there is nothing to stop, or no time left."""
        grace = self._config.stop_timeout_secs
        if view is not None and view.attempt is None:
            raise KeyboardInterrupt(f"{why} before workers had started")
        if self._stop_by is None:
            self._stop_by = math.inf if grace is None else time.monotonic() + grace
        if time.monotonic() > self._stop_by:
            logger.error("Training did not stop within stop_timeout_secs=%s seconds: its workers are ended.", grace)
            raise KeyboardInterrupt(f"{why}, and no stop within {grace} seconds")
        if view is not None and view.attempt is not None and not self._has_passed_stop_on:
            self._has_passed_stop_on = True
            self._stop.announce()
            self._tell(self._monitor.end, why)
            self._tell(self._monitor.stop, view.attempt)

    def _heed_leaving(self, view: GroupView) -> None:
        news = self._leaving.news(view) if view.attempt is not None else None
        if news is not None and view.attempt is not None:
            logger.warning("Training saves and leaves, since %s.", news)
            self._tell(self._monitor.failed, news)
            self._tell(self._monitor.stop, view.attempt)

    def _tell(self, method: Any, word: str) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(method.remote(word), timeout=10)

    def _view(self) -> GroupView | None:
        try:
            view: GroupView = ray.get(self._monitor.view.remote(), timeout=10)
        except ray.exceptions.RayError:
            return None
        return view

    def _abandon(self, why: str) -> None:
        """Ends the run: the workers of now are killed, those of a next attempt turn back at the monitor."""
        self._tell(self._monitor.end, why)
        view = self._view()
        if view is not None and view.actors:
            _kill(view)
            self._ended.wait(_ABANDON_SECS)

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, TrainingError):
            return error
        failure = failure_in(error) or _first_failure(error)
        if failure is not None and not failure.peers_lost:
            return failure.error()
        if isinstance(error, ray.train.ControllerError) and _says_no_place(error):
            return self._no_place()
        if isinstance(error, ray.train.WorkerGroupError):
            if self._hung is not None:
                return self._hung[1]
            lost = WorkersLostError(self._config.max_failures, _last_words(error))
            if failure is not None:
                lost.add_note(f"Seen on {failure.where}:\n{failure.trace}")
            return lost
        return TrainingError(f"Ray Train could not go on: {error}")

    def _no_place(self) -> ResourcesTimeoutError:
        scaling = self._trainer.scaling_config
        asked = [dict(scaling._resources_per_worker_not_none)] * scaling.num_workers
        return ResourcesTimeoutError(
            asked,
            amounts(ray.cluster_resources()),
            amounts(ray.available_resources()),
            self._config.start_timeout_secs or math.inf,
        )


def _first_failure(error: BaseException) -> RemoteFailure | None:
    failures = [failure_in(each) for each in getattr(error, "worker_failures", {}).values()]
    found = [failure for failure in failures if failure is not None]
    return next((failure for failure in found if not failure.peers_lost), found[0] if found else None)


def _says_no_place(error: Any) -> bool:
    return type(error.controller_failure).__name__ == "WorkerGroupStartupTimeoutError"


def _says_start_failed(error: BaseException | None) -> bool:
    """Whether a worker was lost while its group was starting, which Ray Train does not count as a worker's failure."""
    cause = getattr(error, "controller_failure", None)
    return type(cause).__name__ == "WorkerGroupStartupFailedError"


def _last_words(error: Any) -> str:
    rank, failure = next(iter(sorted(error.worker_failures.items())), (None, error))
    return f"rank {rank}: {failure_in(failure) or type(failure).__name__}"


def _kill(view: GroupView) -> None:
    for actor in view.actors.values():
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(actor, no_restart=True)


@contextlib.contextmanager
def _train_settings(start_timeout_secs: float | None) -> Iterator[None]:
    """What Ray Train reads in the driver when a fit starts: how often to look, how long to wait for a place."""
    settings = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(start_timeout_secs or 10**9),
        # An actor more, which ends a group only at the deadline of a notice: `LeavingNodes` moves it at once.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # It would show what a worker prints twice.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
