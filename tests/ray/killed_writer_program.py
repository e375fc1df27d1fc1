"""Writes predictions with checkpoints of Ray Data; the last rows wait at a gate, where the test kills this driver."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"

import ray
import tensorflow as tf
from ray.data.checkpoint import CheckpointConfig
from support.probes import note

from ray_estimator import Estimator, EstimatorSpec, ModeKeys, RunConfig, dataset_input_fn

v1 = tf.compat.v1

GATED_FROM = 280_000
GATE_SECS = 300.0


def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    def passed(ids: Any) -> Any:
        deadline = time.monotonic() + GATE_SECS
        while ids.max() >= GATED_FROM and not Path(params["folder"], "gate").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        note(params["folder"], params["run"], len(ids))
        return ids

    scale = v1.get_variable("scale", [], tf.int64, initializer=v1.constant_initializer(2), trainable=False)
    if mode == ModeKeys.PREDICT:
        ids = tf.ensure_shape(tf.numpy_function(passed, [features["id"]], tf.int64), [None])
        return EstimatorSpec(mode, predictions={"y": ids * scale})
    step = v1.assign_add(v1.train.get_global_step(), 1)
    return EstimatorSpec(mode, loss=tf.cast(tf.reduce_sum(features["id"] * scale), tf.float32), train_op=step)


def write_predictions(folder: str, run: str) -> None:
    """Writes predictions for `folder`/in to `folder`/out, except for the rows that earlier runs have written."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=f"{folder}/marks", delete_checkpoint_on_success=False
    )
    estimator = Estimator(model_fn, f"{folder}/model", RunConfig(), {"folder": folder, "run": run})
    with ray.data.DataContext.current(context):
        input_fn = dataset_input_fn(ray.data.read_parquet(f"{folder}/in"), batch_size=1000)
        estimator.predict_dataset(input_fn, keep_columns=["id"]).write_parquet(f"{folder}/out")


if __name__ == "__main__":
    address, folder = sys.argv[1:]
    ray.init(address, log_to_driver=False)
    write_predictions(folder, "killed")
