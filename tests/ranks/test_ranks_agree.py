"""Ranks agree on every step, stop and save."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.models import X, Y, endless_input_fn, linear_model_fn
from support.probes import AtStep, notes

from ray_estimator import EstimatorSpec

v1 = tf.compat.v1


def three_or_five_batches(input_context: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).take(5 if input_context.input_pipeline_id == 0 else 3)


def batches_on_rank_0_only(input_context: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).take(5 if input_context.input_pipeline_id == 0 else 0)


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


def test_unequal_inputs_end_together(on_ranks: Callable[..., Any]) -> None:
    estimator = on_ranks(linear_model_fn, params={})
    estimator.train(three_or_five_batches)
    assert estimator.latest_checkpoint().endswith("-3")


def test_an_empty_input_on_one_rank_makes_no_step(
    on_ranks: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    estimator = on_ranks(linear_model_fn, params={})
    estimator.train(batches_on_rank_0_only)
    assert estimator.latest_checkpoint().endswith("-0")
    assert "Training with estimator made no steps" in caplog.text


def test_request_stop_on_one_rank_stops_all_at_the_same_step(on_ranks: Callable[..., Any], tmp_path: Path) -> None:
    estimator = on_ranks(linear_model_fn, params={})
    estimator.train(endless_input_fn, hooks=[partial(AtStep, str(tmp_path), "stop", 6, 1)])
    steps = notes(tmp_path, "steps")
    # Rank 1 asks after step 6; all learn of it in step 7, and stop there.
    assert steps[0] == steps[1] == [1, 2, 3, 4, 5, 6, 7]
    assert estimator.latest_checkpoint().endswith("-7")


def test_saves_by_the_clock_and_of_variables_reduced_when_read(on_ranks: Callable[..., Any], tmp_path: Path) -> None:
    estimator = on_ranks(
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
