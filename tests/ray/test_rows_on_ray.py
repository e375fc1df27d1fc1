"""Which rows of a Ray Dataset training sees, and a module that switches TensorFlow's v2 behaviour off."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from support.probes import note, notes

from ray_estimator import EstimatorSpec, dataset_input_fn

v1 = tf.compat.v1
pytestmark = pytest.mark.ray


def noting_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """A linear model that notes the rows of each step."""

    def record(ids: np.ndarray) -> np.float32:
        note(params["folder"], "rows", ids.tolist())
        return np.float32(0)

    noted = tf.numpy_function(record, [features["id"]], tf.float32)
    weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
    loss = tf.reduce_mean(tf.square(weight - tf.cast(labels, tf.float32))) + tf.reshape(noted, [])
    step = v1.train.get_global_step()
    return EstimatorSpec(mode, loss=loss, train_op=v1.train.GradientDescentOptimizer(0.1).minimize(loss, step))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_row_once_an_epoch_and_the_last_batch_shared(
    cluster: Any, on_ray: Callable[..., Any], in_process: Callable[..., Any], tmp_path: Path, num_workers: int
) -> None:
    table = pa.table({"id": np.arange(50), "y": np.arange(50, dtype=np.float32)})
    dataset = cluster.data.from_arrow(table).repartition(4)
    make = partial(on_ray, num_workers=2) if num_workers == 2 else in_process
    estimator = make(noting_model_fn, params={"folder": str(tmp_path)})
    estimator.train(
        dataset_input_fn(dataset, batch_size=12 // num_workers, label_columns="y", num_epochs=2, shuffle=True, seed=5)
    )
    by_rank = notes(tmp_path, "rows")
    steps = zip(*(by_rank[rank] for rank in range(num_workers)), strict=True)
    batches = [[row for part in parts for row in part] for parts in steps]
    rows = [row for batch in batches for row in batch]
    assert sorted(rows[:50]) == list(range(50))
    assert sorted(rows[50:]) == list(range(50))
    assert rows[:50] != rows[50:]
    assert [len(batch) for batch in batches] == [12] * 8 + [4]
    assert estimator.latest_checkpoint().endswith("-9")


def test_a_user_module_that_disables_v2_behavior_trains_on_two_workers(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "old_model.py").write_text(
        """
import tensorflow.compat.v1 as tf
tf.disable_v2_behavior()
from ray_estimator import EstimatorSpec

def model_fn(features, labels, mode):
    # Only without v2 behaviour is the last dimension a Dimension.
    width = features.shape[1].value
    weights = tf.get_variable("weights", [width, 1], initializer=tf.zeros_initializer())
    loss = tf.reduce_mean(tf.square(tf.matmul(features, weights) - labels))
    train_op = tf.train.GradientDescentOptimizer(0.1).minimize(loss, tf.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)

def input_fn():
    return tf.data.Dataset.from_tensors((tf.ones([4, 3]), tf.ones([4, 1]))).repeat()
"""
    )
    (tmp_path / "program.py").write_text(
        f"""
import ray
from ray.train import ScalingConfig
import old_model
from ray_estimator import Estimator, RunConfig

ray.init(address={cluster.get_runtime_context().gcs_address!r}, runtime_env={{"working_dir": {str(tmp_path)!r}}})
config = RunConfig(scaling_config=ScalingConfig(num_workers=2), step_timeout_secs=60, start_timeout_secs=60)
estimator = Estimator(old_model.model_fn, {str(tmp_path / "model")!r}, config)
estimator.train(old_model.input_fn, steps=5)
print("trained to", estimator.latest_checkpoint())
"""
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=200, check=False
    )
    assert "model.ckpt-5" in done.stdout, done.stderr[-3000:]
