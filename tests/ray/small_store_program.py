"""Evaluates and predicts more than the object store holds, on two logical GPUs: `small_store_program.py FOLDER`.

Prints a line of JSON with what it saw. It needs a Ray of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Ray counts GPUs here only if none is hidden.
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
os.environ["RAY_AUTH_MODE"] = "disabled"

import numpy as np
import psutil
import ray
import tensorflow as tf
from support.probes import note, notes

from ray_estimator import Estimator, EstimatorSpec, ModeKeys, RunConfig, dataset_input_fn

MIB = 2**20
STORE_MIB = 100
WIDTH = 1024
NUM_ROWS = 48 * 1024
NUM_BLOCKS = 48
BATCH = 64
SAMPLED = 64 * BATCH
FREE_SECS = 60.0


def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    note(params, "gpus", ray.get_gpu_ids())
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"id": features["id"], "wide": features["wide"] * 2})
    rows = tf.compat.v1.metrics.true_positives(features["id"] >= 0, features["id"] >= 0)
    return EstimatorSpec(mode, loss=tf.reduce_mean(features["wide"]), eval_metric_ops={"rows": rows})


def widen(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "wide": np.repeat(batch["id"][:, None], WIDTH, axis=1).astype(np.float32)}


def used_mib() -> float:
    """What the object store holds."""
    return STORE_MIB - float(ray.available_resources()["object_store_memory"]) / MIB


def driver_mib() -> float:
    """Memory of this process alone."""
    return float(psutil.Process().memory_full_info().uss) / MIB


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + FREE_SECS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


folder = Path(sys.argv[1])
ray.init(
    num_cpus=3,
    num_gpus=2,
    object_store_memory=STORE_MIB * MIB,
    include_dashboard=False,
    log_to_driver=False,
)
try:
    ids = ray.data.range(NUM_ROWS, override_num_blocks=NUM_BLOCKS)
    input_fn = dataset_input_fn(ids.map_batches(widen, batch_size=None), batch_size=BATCH)
    config = RunConfig(task_resources={"GPU": 1})
    estimator = Estimator(model_fn, folder / "model", config, params=str(folder))
    evaluated = estimator.evaluate(input_fn, allow_untrained=True)

    memory, expected = [], 0
    for batch in estimator.predict(input_fn, yield_single_examples=False, allow_untrained=True):
        assert batch["id"].tolist() == list(range(expected, expected + len(batch["id"])))
        assert (batch["wide"][:, -1] == 2 * batch["id"]).all()
        expected += len(batch["id"])
        if expected % SAMPLED == 0:
            memory.append(driver_mib())
    del batch
    emptied = wait_for(lambda: used_mib() < 1)

    print(
        json.dumps(
            {
                "evaluated": float(evaluated["rows"]),
                "predicted": expected,
                "driver_mib": [memory[len(memory) // 4], max(memory)],
                "emptied": emptied,
                "rows": NUM_ROWS,
                "gpus": notes(folder, "gpus")[0],
            }
        )
    )
finally:
    ray.shutdown()
