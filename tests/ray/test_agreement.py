"""Ranks agree on every step, stop and save."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from support.models import X, Y, endless_input_fn, linear_model_fn
from support.probes import AtStep, note, notes

from ray_estimator import EstimatorSpec, dataset_input_fn

v1 = tf.compat.v1
pytestmark = pytest.mark.ray


def three_or_five_batches(input_context: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).take(5 if input_context.input_pipeline_id == 0 else 3)


def batches_on_rank_0_only(input_context: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).take(5 if input_context.input_pipeline_id == 0 else 0)


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


def averaging_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """A linear model with a moving average that is reduced when it is read, as v1 batch normalization keeps it."""
    spec = linear_model_fn(features, labels, mode, params)
    average = v1.get_variable(
        "average",
        [4],
        initializer=v1.zeros_initializer(),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.MEAN,
    )
    update = average.assign(average * 0.5 + 0.5 * tf.reduce_mean(features, axis=0))
    return EstimatorSpec(mode, loss=spec.loss, train_op=tf.group(spec.train_op, update))


def halves(input_context: Any) -> tf.data.Dataset:
    """Rank r sees constant features of r + 1."""
    value = float(input_context.input_pipeline_id + 1)
    return tf.data.Dataset.from_tensors((tf.fill([4, 4], value), tf.zeros([4, 1]))).repeat()


def test_a4_4_unequal_inputs_end_together(on_ray: Callable[..., Any]) -> None:
    estimator = on_ray(linear_model_fn, params={})
    estimator.train(three_or_five_batches)
    assert estimator.latest_checkpoint().endswith("-3")


def test_a4_4_an_empty_input_on_one_rank_makes_no_step(
    on_ray: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    estimator = on_ray(linear_model_fn, params={})
    estimator.train(batches_on_rank_0_only)
    assert estimator.latest_checkpoint().endswith("-0")
    assert "Training with estimator made no steps" in caplog.text


def test_request_stop_on_one_rank_stops_all_at_the_same_step(on_ray: Callable[..., Any], tmp_path: Path) -> None:
    estimator = on_ray(linear_model_fn, params={})
    estimator.train(endless_input_fn, hooks=[partial(AtStep, str(tmp_path), "stop", 6, 1)])
    steps = notes(tmp_path, "steps")
    # Rank 1 asks after step 6; all learn of it in step 7, and stop there.
    assert steps[0] == steps[1] == [1, 2, 3, 4, 5, 6, 7]
    assert estimator.latest_checkpoint().endswith("-7")


def test_saves_by_the_clock_and_of_variables_reduced_when_read(on_ray: Callable[..., Any], tmp_path: Path) -> None:
    estimator = on_ray(
        averaging_model_fn, params={}, save_checkpoints_secs=0.001, keep_checkpoint_max=None, save_summary_steps=0
    )
    estimator.train(halves, max_steps=4)
    steps = sorted(int(path.stem.rpartition("-")[2]) for path in (tmp_path / "model").glob("*.index"))
    assert steps[0] == 0
    assert steps[-1] == 4
    assert len(steps) > 2
    average = tf.train.load_variable(estimator.latest_checkpoint(), "average")
    # Each rank's average goes to its own value; what is saved is their mean.
    np.testing.assert_allclose(average, np.full(4, 1.5 * (1 - 0.5**4)), atol=1e-6)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_row_once_an_epoch_and_the_last_batch_shared(
    cluster: Any, on_ray: Callable[..., Any], tmp_path: Path, num_workers: int
) -> None:
    table = pa.table({"id": np.arange(50), "y": np.arange(50, dtype=np.float32)})
    dataset = cluster.data.from_arrow(table).repartition(4)
    estimator = on_ray(noting_model_fn, num_workers, params={"folder": str(tmp_path)})
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
    import subprocess
    import sys

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
