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
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_estimator._engine import entrypoints
from ray_estimator._jobs.jobs import EvaluateJob, PredictJob, TrainJob
from ray_estimator._jobs.metric_state import MetricState, merged
from ray_estimator._jobs.results import TrainResult
from ray_estimator._jobs.serialization import Packed, pack
from ray_estimator._process.signals import Stop
from ray_estimator._reporting.progress import make_progress
from ray_estimator._runtime.data.predictions import predicted_dataset
from ray_estimator._runtime.data.prefetch import Prefetcher
from ray_estimator._runtime.data.ranges import least_rows, ranges
from ray_estimator._runtime.data.rows import BlockFeed, RangeOfRows, RowSource
from ray_estimator._runtime.data.schema import ray_is_ready
from ray_estimator._runtime.logs import levels, ray_train_level
from ray_estimator._runtime.preflight import check_model_dir
from ray_estimator._runtime.resources import require_outside_this_process, require_shared, resources_per_worker
from ray_estimator._runtime.tasks import gpu_reclaim
from ray_estimator._runtime.tasks.task import LEGACY_KERAS, Task, Tasks
from ray_estimator._runtime.train.fit import Fit
from ray_estimator._runtime.train.monitor import RunMonitor
from ray_estimator._runtime.train.worker_group import EndOnUserErrors, GroupBackendConfig, GroupWork, run_worker
from ray_estimator._storage.preflight import Preflight
from ray_estimator._storage.storage import Storage
from ray_estimator.config import RunConfig

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger(__name__)


class RayRuntime:
    """Runs work on the Ray cluster that this process is connected to, or starts one here."""

    def __init__(self, config: RunConfig, *, model_dir_is_temporary: bool = False) -> None:
        self._config = config
        self._model_dir_is_temporary = model_dir_is_temporary
        self._tasks = Tasks(config)
        require_outside_this_process(str(config.model_dir))

    def pack(self, parts: Mapping[str, Any]) -> Packed:
        """Pickles user code."""
        return pack(parts)

    def connect(self) -> None:
        """Connects to Ray, or starts it, and looks whether its nodes can share model_dir."""
        ray_is_ready()
        num_nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        require_shared(str(self._config.model_dir), is_temporary=self._model_dir_is_temporary, num_nodes=num_nodes)

    def check_model_dir(self) -> None:
        """Tries model_dir from here and from workers."""
        self.connect()
        config = self._config
        preflight = Preflight(str(config.model_dir), Storage(config.storage_options))
        check_model_dir(preflight, self._tasks.runtime_env, config.start_timeout_secs)

    # Training

    def train(self, job: TrainJob, rows: RowSource | None, stop: Stop) -> TrainResult:
        """Trains on a Ray Train group that restarts by itself; gives the chief's result."""
        config, num_workers = self._config, self._config.num_workers
        if self._uses_gpu:
            gpu_reclaim.release(self._tasks.runtime_env)
        resources = self._resources_per_worker(reads_rows=rows is not None)
        monitor = _beside_the_driver(RunMonitor).remote(num_workers)
        feed = None
        if rows is not None and num_workers > 1:
            feed = _beside_the_driver(BlockFeed).remote(rows, num_workers)
        cpus = (resources or {}).get("CPU", None if self._uses_gpu else 1)
        work = GroupWork(job, monitor, None if cpus is None else math.ceil(cpus), rows, feed, levels())
        run_dir = tempfile.mkdtemp(prefix="ray-estimator-run-")
        trainer = DataParallelTrainer(
            run_worker,
            train_loop_config={"work": work},
            backend_config=GroupBackendConfig(monitor),
            scaling_config=self._scaling(resources),
            run_config=ray.train.RunConfig(
                name=f"ray-estimator-{uuid.uuid4().hex[:12]}",
                storage_path=run_dir,
                failure_config=self._failures(),
                callbacks=[EndOnUserErrors(monitor)],
                worker_runtime_env=self._worker_runtime_env(),
                logging_config=LoggingConfig(ray_train_level()),
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
        asked = scaling.resources_per_worker if scaling is not None else None
        cluster_cpus = ray.cluster_resources().get("CPU", 0.0)
        return resources_per_worker(self._config.num_workers, self._uses_gpu, asked, cluster_cpus, reads_rows)

    def _scaling(self, resources: dict[str, Any] | None) -> Any:
        scaling = self._config.scaling_config
        if scaling is None:
            return ray.train.ScalingConfig(num_workers=1, resources_per_worker=resources)
        return dataclasses.replace(scaling, resources_per_worker=resources)

    def _failures(self) -> Any:
        given = self._config.failure_config
        failures = ray.train.FailureConfig() if given is None else given
        # Ray Train retries a group that finds no place for ever; one try is `start_timeout_secs` long here.
        return dataclasses.replace(failures, max_failures=self._config.max_failures, controller_failure_limit=0)

    def _worker_runtime_env(self) -> dict[str, Any]:
        env = dict(self._config.worker_runtime_env or {})
        # Sets of strings are iterated while graphs are built: the same order on every rank.
        variables = {"PYTHONHASHSEED": "0"}
        if self._config.legacy_keras:
            variables |= LEGACY_KERAS
        env["env_vars"] = {**variables, **env.get("env_vars", {})}
        return env

    # Tasks

    def has_room(self) -> bool:
        """Whether what one task takes is free in the cluster now."""
        return self._tasks.has_room()

    def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs `fn` as one task; its errors come back as themselves."""
        self.connect()
        what = f"The task {fn.__name__.replace('_', ' ')!r}"
        result: R = self._result_of(self._tasks.start(what, functools.partial(fn, *args, **kwargs)))
        return result

    def evaluate(self, job: EvaluateJob, rows: RowSource | None, *, one_task: bool) -> dict[str, Any]:
        """Evaluates over ranges of rows and merges their metric states; as one task if it must."""
        if rows is not None and not one_task:
            states, because = self._states(job, rows)
            if states and because is None:
                return self.run(entrypoints.finish_evaluation, job, merged(states))
            if because is not None:
                logger.warning("Evaluating in one task, since %s.", because)
        task = self._as_one_task("The evaluation", _evaluate_all, job, rows)
        results: dict[str, Any] = self._result_of(task)
        return results

    def _states(self, job: EvaluateJob, rows: RowSource) -> tuple[list[MetricState], str | None]:
        """The states of all ranges, and why they may not be merged; at the first that may not, the others are left."""
        states: list[MetricState] = []
        with contextlib.closing(self._over_ranges("The evaluation", _evaluate_range, job, rows, job.steps)) as ranges:
            for state in ranges:
                states.append(state)
                if state.unmergeable is not None:
                    return states, state.unmergeable
        return states, None

    def predict(self, job: PredictJob, rows: RowSource | None, *, one_task: bool) -> Generator[Any]:
        """Predicts over ranges of rows, in order, a bounded number in flight; as one task if it must."""
        if rows is not None and not one_task:
            with contextlib.closing(self._over_ranges("The prediction", _predict_range, job, rows, None)) as ranges:
                first = next(ranges, None)
                if first is None:
                    return
                if first.one_task_because is None:
                    for predicted in itertools.chain([first], ranges):
                        yield from predicted.batches
                    return
            logger.warning("Predicting in one task, since %s.", first.one_task_because)
        task = self._as_one_task("The prediction", _predict_all, job, rows)
        try:
            yield from task
        finally:
            task.cancel()

    def predicted_dataset(self, job: PredictJob, rows: RowSource, keep_columns: Sequence[str]) -> Any:
        """A lazy Dataset of predictions, in the order of `rows`."""
        size = self._config.max_tasks_in_flight
        return predicted_dataset(
            job, rows, keep_columns, least_rows(rows.batch_size), size=size, **self._tasks.options()
        )

    def _over_ranges(
        self, what: str, fn: Callable[..., Any], job: EvaluateJob | PredictJob, rows: RowSource, steps: int | None
    ) -> Generator[Any]:
        """Results of `fn` over batch-aligned ranges of rows, in order. Leaving early ends what has not begun.

        A thread plans and starts ahead, so that no result waits for the next block.
        """
        sent_job, in_flight = ray.put(job), self._tasks.in_flight()
        running: deque[Task] = deque()

        def started() -> Iterator[Task]:
            first_row, stall_secs = 0, self._stall_secs(rows)
            for in_range in ranges(rows, in_flight, steps):
                after = first_row + in_range.num_rows
                named = f"{what} of rows {first_row} to {after - 1}"
                running.append(self._tasks.start(named, fn, sent_job, in_range, stall_secs=stall_secs))
                yield running[-1]
                first_row = after

        try:
            with Prefetcher(started, in_flight) as tasks:
                for task in tasks:
                    yield from task
                    running.popleft()
        finally:
            while running:
                running.popleft().leave()

    def _as_one_task(
        self, what: str, fn: Callable[..., Any], job: EvaluateJob | PredictJob, rows: RowSource | None
    ) -> Task:
        drives_data = rows is not None
        return self._tasks.start(what, fn, job, rows, drives_data=drives_data, stall_secs=self._stall_secs(rows))

    def _stall_secs(self, rows: RowSource | None) -> float | None:
        """How long a batch may take: within TensorFlow nobody can tell a step from its wait for rows."""
        deadlines = [self._config.step_timeout_secs]
        if rows is not None:
            deadlines.append(self._config.input_timeout_secs)
        given = [secs for secs in deadlines if secs is not None]
        return sum(given) if len(given) == len(deadlines) else None

    def _result_of(self, task: Task) -> Any:
        try:
            return next(task)
        except BaseException:
            task.cancel()
            raise


def _beside_the_driver(actor: type) -> Any:
    """An actor class that takes no CPU and lives on the driver's node: it is lost only together with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(actor)


# Task bodies


def _evaluate_range(job: EvaluateJob, rows: RangeOfRows) -> Any:
    return entrypoints.evaluate_range(job, rows.tables)


def _evaluate_all(job: EvaluateJob, rows: RowSource | None) -> Any:
    return entrypoints.evaluate(job, None if rows is None else rows.tables)


def _predict_range(job: PredictJob, rows: RangeOfRows) -> Generator[Any]:
    return entrypoints.predict_parts(job, rows.tables)


def _predict_all(job: PredictJob, rows: RowSource | None) -> Generator[Any]:
    return entrypoints.predict(job, None if rows is None else rows.tables)
