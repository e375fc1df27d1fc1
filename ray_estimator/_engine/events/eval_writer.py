"""Write the results of an evaluation as event files."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._checkpoints.event_files import eval_dir_name
from ray_estimator._engine.events.sync import local_events
from ray_estimator._jobs.jobs import EvaluateJob
from ray_estimator._storage.storage import Storage

logger = logging.getLogger(__name__)


def write_results(job: EvaluateJob, results: Mapping[str, Any]) -> dict[str, Any]:
    """Log the results and write them as tf.estimator does: one event at the checkpoint's step, in eval_<name>."""
    step = int(results[v1.GraphKeys.GLOBAL_STEP])
    shown = ", ".join(f"{name} = {results[name]}" for name in sorted(results))
    logger.info("Saving dict for global step %d: %s", step, shown)
    storage = Storage(job.config.storage_options)
    url = storage.join(job.model_dir, eval_dir_name(job.name))
    # FileWriter does not support eager execution.
    with local_events(storage, url) as folder, tf.Graph().as_default():
        # TensorFlow names the file by the second. The suffix keeps the next evaluation from overwriting it.
        writer = v1.summary.FileWriter(folder, filename_suffix=f".{time.time_ns()}")
        writer.add_summary(_summary(results, job), step)
        writer.close()
    return dict(results)


def _summary(results: Mapping[str, Any], job: EvaluateJob) -> v1.Summary:
    summary = v1.Summary()
    for name in sorted(results):
        if name != v1.GraphKeys.GLOBAL_STEP and results[name] is not None:
            _add_value(summary, name, results[name])
    path = job.checkpoint.path if job.checkpoint is not None else ""
    summary.value.add(tag="checkpoint_path", tensor=tf.make_tensor_proto(path, dtype=tf.string))
    return summary


def _add_value(summary: v1.Summary, name: str, value: Any) -> None:
    if isinstance(value, bytes):
        try:
            parts = v1.Summary.FromString(value).value
        except Exception as error:  # a DecodeError of any protobuf implementation
            logger.warning("Skipping summary for %s, cannot parse string to Summary: %s", name, error)
            return
        for number, part in enumerate(parts):
            part.tag = f"{name}/{number}"
            summary.value.add().CopyFrom(part)
    elif isinstance(value, bool | int | float | np.integer | np.floating | np.bool_):
        summary.value.add(tag=name, simple_value=float(value))
    elif isinstance(value, np.ndarray):
        summary.value.add(tag=name, tensor=tf.make_tensor_proto(value))
    else:
        logger.warning("Skipping summary for %s, must be a float, np.float32, np.int64, an int or np.ndarray.", name)
