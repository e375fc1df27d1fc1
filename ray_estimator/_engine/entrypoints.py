"""The functions that the driver, workers and tasks call.

Each one imports its part of the engine when called, so that a driver that only submits jobs does not import TensorFlow.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator
from typing import Any

from ray_estimator._checkpoints.store import Checkpoint
from ray_estimator._jobs.jobs import EvaluateJob, ExportJob, PredictJob, TrainJob
from ray_estimator._jobs.metric_state import MetricState
from ray_estimator._jobs.results import PredictedRange, TrainResult
from ray_estimator._jobs.worker import Tables, Worker
from ray_estimator._process.quiet import quiet_tensorflow
from ray_estimator._storage.staging import iterating_for, staging_for
from ray_estimator._storage.storage import Storage
from ray_estimator.config import RunConfig


def import_engine(num_cpus: float) -> None:
    """Import TensorFlow and the engine for a task, with as many threads as the task has CPUs.

    Threads and GPU memory growth that `session_config` or the environment set take precedence.
    """
    num_threads = max(1, math.ceil(num_cpus))
    # TensorFlow reads these when it creates its first session. tf.data needs a second inter-op thread.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(num_threads))
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", str(max(2, num_threads)))
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with quiet_tensorflow():
        from ray_estimator._engine.checkpointing import variables  # noqa: F401


def train(job: TrainJob, worker: Worker) -> TrainResult:
    """Train as one worker of the group."""
    with quiet_tensorflow():
        from ray_estimator._engine import train

    with staging_for(job.model_dir, job.config.storage_options):
        return train.run(job, worker)


def evaluate(job: EvaluateJob, tables: Tables | None = None) -> dict[str, Any]:
    """Evaluate in one pass."""
    with quiet_tensorflow():
        from ray_estimator._engine import evaluate

    with staging_for(job.model_dir, job.config.storage_options):
        return evaluate.run(job, tables)


def evaluate_range(job: EvaluateJob, tables: Tables) -> MetricState:
    """Return the metric state of one range of rows."""
    with quiet_tensorflow():
        from ray_estimator._engine import evaluate

    with staging_for(job.model_dir, job.config.storage_options):
        return evaluate.accumulate(job, tables)


def finish_evaluation(job: EvaluateJob, state: MetricState) -> dict[str, Any]:
    """Return the metrics of a merged state."""
    with quiet_tensorflow():
        from ray_estimator._engine import evaluate

    with staging_for(job.model_dir, job.config.storage_options):
        return evaluate.finish(job, state)


def predict(job: PredictJob, tables: Tables | None = None) -> Generator[Any]:
    """Predict as a stream of batches."""
    with quiet_tensorflow():
        from ray_estimator._engine import predict

    return iterating_for(job.model_dir, job.config.storage_options, predict.stream(job, tables))


def predict_range(job: PredictJob, tables: Tables) -> PredictedRange:
    """Return the predictions of one range of rows."""
    with quiet_tensorflow():
        from ray_estimator._engine import predict

    with staging_for(job.model_dir, job.config.storage_options):
        return predict.predict_range(job, tables)


def predict_parts(job: PredictJob, tables: Tables) -> Generator[PredictedRange]:
    """Yield the predictions of one range of rows, in parts of a few MiB."""
    with quiet_tensorflow():
        from ray_estimator._engine import predict

    return iterating_for(job.model_dir, job.config.storage_options, predict.predict_parts(job, tables))


def export(job: ExportJob) -> str:
    """Write a SavedModel, and return its path or URL."""
    with quiet_tensorflow():
        from ray_estimator._engine import export

    with staging_for(job.model_dir, job.config.storage_options):
        return export.run(job)


def variable_names(model_dir: str, config: RunConfig, checkpoint: Checkpoint) -> list[str]:
    """Return the names of the variables of a checkpoint."""
    from ray_estimator._engine.checkpointing import variables

    return variables.names(model_dir, config, checkpoint)


def variable_value(model_dir: str, config: RunConfig, checkpoint: Checkpoint, name: str) -> Any:
    """Return the value of one variable of a checkpoint."""
    from ray_estimator._engine.checkpointing import variables

    return variables.value(model_dir, config, checkpoint, name)


def event_scalars(storage: Storage, url: str, pattern: str) -> dict[int, dict[str, float]]:
    """Return the scalars of event files, by global step and tag."""
    from ray_estimator._engine.events import reader

    return reader.scalars(storage, url, pattern)


def stop_hook(should_stop_fn: Callable[[], bool], every_secs: float | None, every_steps: int | None) -> Any:
    """Return a hook that ends training when `should_stop_fn` returns True."""
    from ray_estimator._engine.hooks import stopping

    return stopping.StopOnPredicate(should_stop_fn, every_secs, every_steps)


def mlflow_hook(tracking_uri: str, run_id: str, every_steps: int) -> Any:
    """Return a hook that logs training metrics to a run of MLflow."""
    from ray_estimator._engine.hooks import tracking

    return tracking.LogToTracker(tracking.MlflowLog(tracking_uri, run_id), every_steps)


def after_save_listener(function: Callable[[], None]) -> Any:
    """Return a saving listener that calls `function` after each checkpoint except the first."""
    from ray_estimator._engine.hooks import listeners

    return listeners.CallAfterSave(function)


def idle_listener() -> Any:
    """Return a saving listener that does nothing."""
    from ray_estimator._engine.hooks import listeners

    return listeners.idle_listener()
