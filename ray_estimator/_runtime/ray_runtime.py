"""The runtime on a Ray cluster: training on a Ray Train group, evaluation and prediction as Ray tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_estimator._engine import entrypoints
from ray_estimator._jobs.jobs import EvaluateJob, PredictJob, TrainJob
from ray_estimator._jobs.metric_state import MetricState, merged
from ray_estimator._jobs.results import TrainResult
from ray_estimator._jobs.serialization import Packed, pack
from ray_estimator._process import legacy_keras
from ray_estimator._process.signals import Stop
from ray_estimator._reporting.progress import make_progress
from ray_estimator._runtime import ray_private
from ray_estimator._runtime.data.predictions import predicted_dataset
from ray_estimator._runtime.data.prefetch import Prefetcher
from ray_estimator._runtime.data.ranges import least_rows, ranges
from ray_estimator._runtime.data.rows import BlockFeed, RangeOfRows, RowSource
from ray_estimator._runtime.data.schema import ray_is_ready
from ray_estimator._runtime.logs import log_levels, ray_train_log_level
from ray_estimator._runtime.preflight import check_model_dir
from ray_estimator._runtime.resources import require_outside_this_process, require_shared, resources_per_worker
from ray_estimator._runtime.tasks import gpu_reclaim
from ray_estimator._runtime.tasks.task import Task, Tasks
from ray_estimator._runtime.train.fit import Fit
from ray_estimator._runtime.train.monitor import RunMonitor
from ray_estimator._runtime.train.worker_group import FailOnUserErrors, GroupBackendConfig, GroupWork, run_worker
from ray_estimator._storage.preflight import Preflight
from ray_estimator._storage.storage import Storage
from ray_estimator.config import RunConfig

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger(__name__)


class RayRuntime:
    """Runs work on the Ray cluster that this process is connected to, or starts a local one."""

    def __init__(self, config: RunConfig, *, model_dir_is_temporary: bool = False) -> None:
        self._config = config
        self._model_dir_is_temporary = model_dir_is_temporary
        self._tasks = Tasks(config)
        require_outside_this_process(str(config.model_dir))
        ray_private.require_names()

    def pack(self, parts: Mapping[str, Any]) -> Packed:
        """Serialize user code."""
        return pack(parts)

    def connect(self) -> None:
        """Connect to Ray, or start it, and check that its nodes can share model_dir."""
        ray_is_ready()
        num_nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        require_shared(str(self._config.model_dir), is_temporary=self._model_dir_is_temporary, num_nodes=num_nodes)

    def check_model_dir(self) -> None:
        """Check model_dir from the driver and from workers."""
        self.connect()
        config = self._config
        preflight = Preflight(str(config.model_dir), Storage(config.storage_options))
        check_model_dir(preflight, self._tasks.runtime_env, config.start_timeout_secs)

    # Training

    def train(self, job: TrainJob, rows: RowSource | None, stop: Stop) -> TrainResult:
        """Train on a Ray Train group, which restarts after failures; return the chief's result."""
        config, num_workers = self._config, self._config.num_workers
        if self._uses_gpu:
            gpu_reclaim.release(self._tasks.runtime_env)
        resources = self._resources_per_worker(reads_rows=rows is not None)
        monitor = _on_driver_node(RunMonitor).remote(num_workers)
        feed = None
        if rows is not None and num_workers > 1:
            feed = _on_driver_node(BlockFeed).remote(rows, num_workers)
        cpus = (resources or {}).get("CPU", None if self._uses_gpu else 1)
        work = GroupWork(job, monitor, None if cpus is None else math.ceil(cpus), rows, feed, log_levels())
        run_dir = tempfile.mkdtemp(prefix="ray-estimator-run-")
        trainer = DataParallelTrainer(
            run_worker,
            train_loop_config={"work": work},
            backend_config=GroupBackendConfig(monitor),
            scaling_config=self._scaling_config(resources),
            run_config=ray.train.RunConfig(
                name=f"ray-estimator-{uuid.uuid4().hex[:12]}",
                storage_path=run_dir,
                failure_config=self._failure_config(),
                callbacks=[FailOnUserErrors(monitor)],
                worker_runtime_env=self._worker_runtime_env(),
                logging_config=ray.train.LoggingConfig(ray_train_log_level()),
            ),
        )
        try:
            with make_progress(config, job.last_step) as progress:
                return Fit(trainer, monitor, config, progress, stop).result()
        finally:
            for actor in (monitor, feed):
                if actor is not None:
                    ray.kill(actor)
            shutil.rmtree(run_dir, ignore_errors=True)

    @property
    def _uses_gpu(self) -> bool:
        return self._config.scaling_config is not None and bool(self._config.scaling_config.use_gpu)

    def _resources_per_worker(self, *, reads_rows: bool) -> dict[str, Any] | None:
        scaling = self._config.scaling_config
        requested = scaling.resources_per_worker if scaling is not None else None
        cluster_cpus = ray.cluster_resources().get("CPU", 0.0)
        return resources_per_worker(self._config.num_workers, self._uses_gpu, requested, cluster_cpus, reads_rows)

    def _scaling_config(self, resources: dict[str, Any] | None) -> Any:
        scaling = self._config.scaling_config
        if scaling is None:
            return ray.train.ScalingConfig(num_workers=1, resources_per_worker=resources)
        return dataclasses.replace(scaling, resources_per_worker=resources)

    def _failure_config(self) -> Any:
        failures = self._config.failure_config or ray.train.FailureConfig()
        # Ray Train would retry forever to schedule a group; here a single attempt lasts `start_timeout_secs`.
        return dataclasses.replace(failures, max_failures=self._config.max_failures, controller_failure_limit=0)

    def _worker_runtime_env(self) -> dict[str, Any]:
        env = dict(self._config.worker_runtime_env or {})
        # Graph building iterates over sets of strings, which must have the same order on every rank.
        variables = {"PYTHONHASHSEED": "0"}
        if self._config.legacy_keras:
            variables |= legacy_keras.ENABLED
        env["env_vars"] = {**variables, **env.get("env_vars", {})}
        return env

    # Tasks

    def has_room(self) -> bool:
        """Return whether the cluster has the resources of one task free."""
        return self._tasks.has_room()

    def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `fn` as one task; its errors keep their type."""
        self.connect()
        name = f"The task {fn.__name__.replace('_', ' ')!r}"
        result: R = self._result_of(self._tasks.start(name, functools.partial(fn, *args, **kwargs)))
        return result

    def evaluate(self, job: EvaluateJob, rows: RowSource | None, *, one_task: bool) -> dict[str, Any]:
        """Evaluate in parallel over ranges of rows and merge their metric states, or in one task."""
        if rows is not None and not one_task:
            states, unmergeable = self._metric_states(job, rows)
            if states and unmergeable is None:
                return self.run(entrypoints.finish_evaluation, job, merged(states))
            if unmergeable is not None:
                logger.warning("Evaluating in one task, since %s.", unmergeable)
        task = self._start_one_task("The evaluation", _evaluate_all, job, rows)
        results: dict[str, Any] = self._result_of(task)
        return results

    def _metric_states(self, job: EvaluateJob, rows: RowSource) -> tuple[list[MetricState], str | None]:
        """Return the states of all ranges; at the first that cannot be merged, stop, and return why."""
        states: list[MetricState] = []
        results = self._results_by_range("The evaluation", _evaluate_range, job, rows, job.steps)
        with contextlib.closing(results):
            for state in results:
                states.append(state)
                if state.unmergeable is not None:
                    return states, state.unmergeable
        return states, None

    def predict(self, job: PredictJob, rows: RowSource | None, *, one_task: bool) -> Generator[Any]:
        """Predict in parallel over ranges of rows, in order, a bounded number at a time, or in one task."""
        if rows is not None and not one_task:
            results = self._results_by_range("The prediction", _predict_range, job, rows, None)
            with contextlib.closing(results):
                first = next(results, None)
                if first is None:
                    return
                if first.one_task_reason is None:
                    for predicted in itertools.chain([first], results):
                        yield from predicted.batches
                    return
            logger.warning("Predicting in one task, since %s.", first.one_task_reason)
        task = self._start_one_task("The prediction", _predict_all, job, rows)
        try:
            yield from task
        finally:
            task.cancel()

    def predicted_dataset(self, job: PredictJob, rows: RowSource, keep_columns: Sequence[str]) -> Any:
        """Return a lazy Dataset of predictions, in the order of `rows`."""
        size = self._config.max_tasks_in_flight
        return predicted_dataset(
            job, rows, keep_columns, least_rows(rows.batch_size), size=size, **self._tasks.options()
        )

    def _results_by_range(
        self, name: str, fn: Callable[..., Any], job: EvaluateJob | PredictJob, rows: RowSource, steps: int | None
    ) -> Generator[Any]:
        """Yield the results of `fn` over batch-aligned ranges of rows, in order.

        A thread plans ranges and submits their tasks ahead, so that results do not wait for the next block. Closing the
        generator cancels tasks that have not started.
        """
        job_ref, max_in_flight = ray.put(job), self._tasks.max_in_flight()
        running: deque[Task] = deque()

        def started() -> Iterator[Task]:
            first_row, stall_secs = 0, self._stall_secs(rows)
            for row_range in ranges(rows, max_in_flight, steps):
                end_row = first_row + row_range.num_rows
                task_name = f"{name} of rows {first_row} to {end_row - 1}"
                running.append(self._tasks.start(task_name, fn, job_ref, row_range, stall_secs=stall_secs))
                yield running[-1]
                first_row = end_row

        try:
            with Prefetcher(started, max_in_flight) as tasks:
                for task in tasks:
                    yield from task
                    running.popleft()
        finally:
            while running:
                running.popleft().abandon()

    def _start_one_task(
        self, name: str, fn: Callable[..., Any], job: EvaluateJob | PredictJob, rows: RowSource | None
    ) -> Task:
        drives_data = rows is not None
        return self._tasks.start(name, fn, job, rows, drives_data=drives_data, stall_secs=self._stall_secs(rows))

    def _stall_secs(self, rows: RowSource | None) -> float | None:
        """Return the limit for one batch. Inside TensorFlow, a step and its wait for rows cannot be told apart."""
        deadlines = [self._config.step_timeout_secs]
        if rows is not None:
            deadlines.append(self._config.input_timeout_secs)
        limits = [secs for secs in deadlines if secs is not None]
        return sum(limits) if len(limits) == len(deadlines) else None

    def _result_of(self, task: Task) -> Any:
        try:
            return next(task)
        except BaseException:
            task.cancel()
            raise


def _on_driver_node(actor: type) -> Any:
    """Return an actor class that takes no CPU and runs on the driver's node, so that both are lost together."""
    strategy = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=strategy)(actor)


# Task bodies


def _evaluate_range(job: EvaluateJob, rows: RangeOfRows) -> Any:
    return entrypoints.evaluate_range(job, rows.tables)


def _evaluate_all(job: EvaluateJob, rows: RowSource | None) -> Any:
    return entrypoints.evaluate(job, None if rows is None else rows.tables)


def _predict_range(job: PredictJob, rows: RangeOfRows) -> Generator[Any]:
    return entrypoints.predict_parts(job, rows.tables)


def _predict_all(job: PredictJob, rows: RowSource | None) -> Generator[Any]:
    return entrypoints.predict(job, None if rows is None else rows.tables)
