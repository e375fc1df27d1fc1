"""Trains one epoch over a Dataset of four times the object store.

`larger_than_store_program.py MODEL_DIR` prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"

import numpy as np
import ray
import tensorflow as tf
from ray._private.internal_api import node_stats
from ray.train import ScalingConfig

from ray_estimator import Estimator, EstimatorSpec, RunConfig, dataset_input_fn

v1 = tf.compat.v1
STORE_BYTES = 80 * 2**20
BLOCKS, ROWS_OF_A_BLOCK, WIDTH = 160, 256, 2048
BATCH = 128


def wide(batch):
    return {"x": np.ones((len(batch["id"]), WIDTH), np.float32)}


def model_fn(features, mode):
    weight = v1.get_variable("weight", [WIDTH, 1])
    loss = tf.reduce_mean(features["x"] @ weight)
    train_op = v1.train.GradientDescentOptimizer(1e-6).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class NotePeak(v1.train.SessionRunHook):
    """Notes the peak memory when the first batches have gone by, and the steps."""

    def __init__(self) -> None:
        self.steps, self.at_first = 0, 0

    def after_run(self, run_context, run_values):
        self.steps += 1
        if self.steps == 16:
            self.at_first = peak_bytes()


def store_stats() -> Any:
    """Of the object store of the first node."""
    node = ray.nodes()[0]
    return node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats


if __name__ == "__main__":
    ray.init(num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False)
    try:
        rows = BLOCKS * ROWS_OF_A_BLOCK
        dataset = ray.data.range(rows, override_num_blocks=BLOCKS).map_batches(wide, batch_size=None)
        note = NotePeak()
        config = RunConfig(scaling_config=ScalingConfig(num_workers=0), save_checkpoints_steps=100_000)
        estimator = Estimator(model_fn, sys.argv[1], config)
        estimator.train(dataset_input_fn(dataset, batch_size=BATCH, num_epochs=1), hooks=[note])
        seen = {
            "rows": note.steps * BATCH,
            "expected_rows": rows,
            "dataset_bytes": rows * WIDTH * 4,
            "store_bytes": STORE_BYTES,
            "spilled_bytes": store_stats().spilled_bytes_total,
            "grown_bytes": peak_bytes() - note.at_first,
        }
    finally:
        ray.shutdown()
    print(json.dumps(seen))
