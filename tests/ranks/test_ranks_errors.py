"""Errors of one rank or of both, as their own, and ranks whose graphs differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from support.models import endless_input_fn, linear_model_fn
from support.probes import note, notes

from ray_estimator import EstimatorSpec, RanksDisagreeError

v1 = tf.compat.v1


def input_fn_that_raises_on_rank_1(input_context: Any) -> Any:
    if input_context.input_pipeline_id == 1:
        raise KeyError("no such shard")
    return endless_input_fn()


def model_fn_with_more_on_rank_1(features: Any, labels: Any, mode: str, config: Any, params: Any) -> EstimatorSpec:
    if config.task_id == 1:
        v1.get_variable("extra", [3])
    return linear_model_fn(features, labels, mode, params)


def nan_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    note(params["folder"], "calls", 1)
    spec = linear_model_fn(features, labels, mode, {})
    step = v1.train.get_global_step()
    poison = tf.where(tf.equal(step, 4), float("nan"), 0.0)
    return EstimatorSpec(mode, loss=spec.loss + poison, train_op=spec.train_op)


def test_an_error_of_one_rank_outranks_its_waiting_peers(on_ranks: Callable[..., Any]) -> None:
    with pytest.raises(KeyError, match="no such shard") as caught:
        on_ranks(linear_model_fn, params={}).train(input_fn_that_raises_on_rank_1, steps=10)
    assert "Raised on rank 1" in "".join(caught.value.__notes__)


def test_a_nan_loss_ends_training_and_is_not_published(on_ranks: Callable[..., Any], tmp_path: Path) -> None:
    estimator = on_ranks(nan_model_fn, params={"folder": str(tmp_path)}, save_checkpoints_steps=1)
    with pytest.raises(v1.train.NanLossDuringTrainingError):
        estimator.train(endless_input_fn, steps=10)
    assert estimator.latest_checkpoint().endswith("-4")
    assert notes(tmp_path, "calls")[0] == [1]


def test_ranks_whose_graphs_differ_stop_before_step_1(on_ranks: Callable[..., Any]) -> None:
    estimator = on_ranks(model_fn_with_more_on_rank_1, params={})
    with pytest.raises(RanksDisagreeError, match=r"rank 0 has .*dense/kernel.* where rank 1 has .*extra"):
        estimator.train(endless_input_fn, steps=10)
    assert estimator.latest_checkpoint() is None
