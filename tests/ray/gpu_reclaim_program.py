"""Evaluates twice on a logical GPU, trains on it, and evaluates again: `gpu_reclaim_program.py FOLDER`.

Prints a line of JSON with what it saw. It needs a Ray of its own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Ray counts GPUs here only if none is hidden.
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
os.environ["RAY_AUTH_MODE"] = "disabled"

import numpy as np
import psutil
import ray
import tensorflow as tf
from ray.train import ScalingConfig
from support.probes import note, notes

from ray_estimator import Estimator, EstimatorSpec, ModeKeys, RunConfig, dataset_input_fn

v1 = tf.compat.v1
folder = Path(sys.argv[1])


def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    weight = v1.get_variable("weight", [])
    loss = tf.reduce_mean(tf.square(weight - features["x"]))
    if mode == ModeKeys.TRAIN:
        note(params, "trained beside", [pid for pid in notes(params, "evaluated in")[0] if psutil.pid_exists(pid)])
    metrics = {"here": v1.metrics.mean(tf.numpy_function(note_process, [], tf.float32))}
    train_op = v1.train.GradientDescentOptimizer(0.1).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op, eval_metric_ops=metrics)


def note_process() -> Any:
    note(str(folder), "evaluated in", os.getpid())
    return np.float32(1)


# Else Ray itself ends idle processes, where there are more than CPUs.
long = {"idle_worker_killing_time_threshold_ms": 600_000}
ray.init(num_cpus=3, num_gpus=1, include_dashboard=False, log_to_driver=False, _system_config=long)
try:
    rows = ray.data.from_numpy(np.ones(8, np.float32)).rename_columns({"data": "x"})
    input_fn = dataset_input_fn(rows, batch_size=8)
    config = RunConfig(scaling_config=ScalingConfig(num_workers=1, use_gpu=True), task_resources={"GPU": 1})
    estimator = Estimator(model_fn, folder / "model", config, params=str(folder))
    estimator.evaluate(input_fn, allow_untrained=True)
    estimator.evaluate(input_fn, allow_untrained=True)
    estimator.train(input_fn, steps=1)
    estimator.evaluate(input_fn)
    print(json.dumps({name: notes(folder, name)[0] for name in ("evaluated in", "trained beside")}))
finally:
    ray.shutdown()
