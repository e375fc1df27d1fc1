"""One training run on Ray Train: `fit` runs in a thread, and the caller's thread monitors it."""

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
from ray_estimator._runtime import ray_private
from ray_estimator._runtime.resources import readable
from ray_estimator._runtime.train.metrics import RunMetrics
from ray_estimator._runtime.train.preemption import DrainingNodes
from ray_estimator._runtime.train.step_watchdog import StepWatchdog
from ray_estimator._runtime.train.worker_group import failure_in
from ray_estimator.config import RunConfig
from ray_estimator.errors import ResourcesTimeoutError, StepTimeoutError, TrainingError, WorkersLostError

_POLL_SECS = 0.25
_ANSWER_SECS = 10.0
_ABORT_SECS = 60.0

logger = logging.getLogger(__name__)


class Fit:
    """One training run.

    A request to stop goes through the monitor to the chief, which stops all ranks at one step and publishes it. The
    same happens when a node with a rank drains; then another `fit` continues on other nodes, and no failure is counted.

    Args:
        trainer: The trainer to fit.
        monitor: Handle of the run's `RunMonitor`.
        config: Deadlines, and how many failures the run survives.
        progress: Display of the run's state.
        stop: The caller's request to stop.
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
        self._stop_deadline: float | None = None
        self._stop_is_sent = False
        self._draining = DrainingNodes()
        self._result: TrainResult | None = None
        self._error: BaseException | None = None
        self._hang: tuple[str | None, StepTimeoutError] | None = None
        # Waited for instead of `Thread.join`: if interrupted there, CPython 3.11 takes the thread for ended.
        self._has_ended = threading.Event()

    def result(self) -> TrainResult:
        """Wait for the end of the run; return the chief's result, or raise the error that explains it."""
        thread = threading.Thread(target=self._fit, name="ray-train-fit", daemon=True)
        with _train_settings(self._config.start_timeout_secs):
            thread.start()
            try:
                self._monitor_run()
            except BaseException as error:
                self._abort(f"the driver stopped waiting: {type(error).__name__}")
                raise
        thread.join()
        if self._error is not None:
            raise self._explained(self._error)
        assert self._result is not None, "Ray Train returned no result."
        return self._result

    # In the thread

    def _fit(self) -> None:
        try:
            failed_starts = 0
            while True:
                self._fit_once()
                if self._should_move():
                    continue
                if not ray_private.start_failed(self._error) or 0 <= self._config.max_failures <= failed_starts:
                    return
                failed_starts += 1
        finally:
            self._has_ended.set()

    def _fit_once(self) -> None:
        self._result = self._error = None
        try:
            self._result = self._trainer.fit().return_value
        except BaseException as error:  # Raised, explained, by `result`.
            self._error = error

    def _should_move(self) -> bool:
        """Return whether the group stopped in order to continue on other nodes."""
        if self._result is None or not self._result.cut_short or self._stop.why is not None:
            return False
        if self._draining.include_driver:
            self._error = TrainingError(
                f"The driver's own node is going away. Training has stopped at step {self._result.step}. Start the "
                "driver on another node to continue from there."
            )
            return False
        logger.warning("Training continues from step %d on other nodes.", self._result.step)
        return True

    # In the caller's thread

    def _monitor_run(self) -> None:
        watchdog = StepWatchdog(self._config.step_timeout_secs, time.monotonic())
        while not self._has_ended.is_set():
            self._has_ended.wait(_POLL_SECS)
            if self._stop.at_once:
                raise TrainingError("The run was aborted by its driver.")
            view = self._view()
            if self._stop.why is not None:
                self._handle_stop(self._stop.why, view)
            if view is None:
                continue
            self._progress.show(view)
            self._metrics.update(view)
            self._handle_draining(view)
            if self._hang is not None and self._hang[0] != view.attempt:
                self._hang = None
            hang = watchdog.check(view, time.monotonic())
            if hang is not None:
                logger.error("%s Killing the workers.", hang)
                self._hang = (view.attempt, hang)
                _kill(view)

    def _handle_stop(self, why: str, view: GroupView | None) -> None:
        """Send the request to stop, once. Raise KeyboardInterrupt if no worker has started, or at the deadline."""
        grace = self._config.stop_timeout_secs
        if view is not None and view.attempt is None:
            raise KeyboardInterrupt(f"{why} before any worker started")
        if self._stop_deadline is None:
            self._stop_deadline = math.inf if grace is None else time.monotonic() + grace
        if time.monotonic() > self._stop_deadline:
            logger.error("Training did not stop within stop_timeout_secs=%s seconds. Killing its workers.", grace)
            raise KeyboardInterrupt(f"{why}, and training did not stop within {grace} seconds")
        if view is not None and view.attempt is not None and not self._stop_is_sent:
            self._stop_is_sent = True
            self._stop.announce()
            self._send(self._monitor.end, why)
            self._send(self._monitor.stop, view.attempt)

    def _handle_draining(self, view: GroupView) -> None:
        if view.attempt is None:
            return
        draining = self._draining.newly_draining(view)
        if draining is not None:
            logger.warning("Training saves a checkpoint and moves to other nodes: %s.", draining)
            self._send(self._monitor.failed, draining)
            self._send(self._monitor.stop, view.attempt)

    def _send(self, method: Any, message: str) -> None:
        try:
            ray.get(method.remote(message), timeout=_ANSWER_SECS)
        except ray.exceptions.RayError as error:
            logger.warning("The monitor of the run does not answer: %s", error)

    def _view(self) -> GroupView | None:
        """Return the current state of the run; None if the monitor does not answer, which Ray Train notices too."""
        try:
            view: GroupView = ray.get(self._monitor.view.remote(), timeout=_ANSWER_SECS)
        except ray.exceptions.RayError:
            return None
        return view

    def _abort(self, reason: str) -> None:
        """End the run: kill the current workers. Those of a later attempt end when they join the monitor."""
        self._send(self._monitor.end, reason)
        view = self._view()
        if view is not None and view.actors:
            _kill(view)
            if not self._has_ended.wait(_ABORT_SECS):
                logger.warning("Ray Train is still running %g s after its workers were killed.", _ABORT_SECS)

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, TrainingError):
            return error
        failure = failure_in(error) or _first_failure(error)
        if failure is not None and not failure.peers_lost:
            return failure.error()
        if ray_private.start_timed_out(error):
            return self._resources_timeout()
        if isinstance(error, ray.train.WorkerGroupError):
            if self._hang is not None:
                return self._hang[1]
            lost = WorkersLostError(self._config.max_failures, _first_lost(error))
            if failure is not None:
                lost.add_note(f"Raised on {failure.where}:\n{failure.trace}")
            return lost
        return TrainingError(f"Ray Train failed: {error}")

    def _resources_timeout(self) -> ResourcesTimeoutError:
        scaling = self._trainer.scaling_config
        return ResourcesTimeoutError(
            [ray_private.worker_resources(scaling)] * scaling.num_workers,
            readable(ray.cluster_resources()),
            readable(ray.available_resources()),
            self._config.start_timeout_secs or math.inf,
        )


def _first_failure(error: BaseException) -> RemoteFailure | None:
    """Return the failure to report among those of all workers: preferably one that is no consequence of another."""
    failures = [failure_in(each) for each in getattr(error, "worker_failures", {}).values()]
    found = [failure for failure in failures if failure is not None]
    return next((failure for failure in found if not failure.peers_lost), found[0] if found else None)


def _first_lost(error: Any) -> str:
    rank, failure = next(iter(sorted(error.worker_failures.items())), (None, error))
    return f"rank {rank}: {failure_in(failure) or type(failure).__name__}"


def _kill(view: GroupView) -> None:
    for actor in view.actors.values():
        with contextlib.suppress(ray.exceptions.RayError):  # It is dead already.
            ray.kill(actor, no_restart=True)


@contextlib.contextmanager
def _train_settings(start_timeout_secs: float | None) -> Iterator[None]:
    """Set Ray Train's environment variables on the driver while a fit starts and runs."""
    settings = ray_private.train_settings(start_timeout_secs)
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
