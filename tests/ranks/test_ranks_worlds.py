"""Both worlds of model_fn on two ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support import worlds
from support.probes import NoteLosses, NoteMasks, notes
from support.two_processes import results_of, use_two_processes

from ray_estimator import Estimator, RunConfig, export

v1 = tf.compat.v1

STEPS = 60
RECEIVER_FN = export.build_raw_serving_input_receiver_fn(
    {"x": tf.TensorSpec([None, worlds.NUM_FLOATS]), "ids": tf.TensorSpec([None, worlds.SEQUENCE_LENGTH], tf.int32)}
)

WORLDS = {
    "v1": (worlds.v1_model_fn, {}),
    "keras": (worlds.keras_model_fn, {}),
    "keras_bfloat16": (worlds.keras_model_fn, {"dtype_policy": "mixed_bfloat16"}),
}


@pytest.mark.parametrize("world", WORLDS)
def test_a_world_trains_evaluates_predicts_and_serves(on_ranks: Callable[..., Any], tmp_path: Path, world: str) -> None:
    model_fn, params = WORLDS[world]
    make = partial(on_ranks, model_fn, params=params)
    estimator = make()
    hooks = [partial(NoteLosses, str(tmp_path)), partial(NoteMasks, str(tmp_path))]
    estimator.train(worlds.endless_input_fn, steps=STEPS, hooks=hooks)

    losses = [loss for _, loss in notes(tmp_path, "loss")[0]]
    assert len(losses) == STEPS
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    masks = notes(tmp_path, "masks")
    assert (world == "v1") == (not masks)
    for of_rank in masks.values():
        assert len({str(mask) for mask in of_rank}) == 3

    result = estimator.evaluate(worlds.one_pass_input_fn)
    assert result["global_step"] == STEPS
    assert result["accuracy"] > 0.75
    saved = {name: estimator.get_variable_value(name) for name in estimator.get_variable_names() if "bias" in name}
    assert any(np.allclose(np.mean(value), np.mean(result["bias"]), atol=1e-6) for value in saved.values())
    moving = [name for name in estimator.get_variable_names() if name.endswith("moving_mean")]
    assert (world == "v1") == (not moving)
    assert all(np.abs(estimator.get_variable_value(name)).max() > 1e-3 for name in moving)

    before = [row["probability"] for row in estimator.predict(worlds.one_pass_input_fn)]
    after = [row["probability"] for row in make().predict(worlds.one_pass_input_fn)]
    assert len(before) == worlds.NUM_ROWS
    np.testing.assert_array_equal(before, after)

    served = tf.saved_model.load(estimator.export_saved_model(tmp_path / "export", RECEIVER_FN))
    answer = served.signatures["serving_default"](x=tf.constant(worlds.X), ids=tf.constant(worlds.IDS))
    np.testing.assert_allclose(answer["probability"], before, rtol=1e-5 if world != "keras_bfloat16" else 0.05)


def test_a_user_module_that_disables_v2_behavior_trains_on_two_workers(tmp_path: Path) -> None:
    (tmp_path / "v1_model.py").write_text(
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
    (latest,) = results_of([(train_the_v1_model, str(tmp_path))])
    assert latest.endswith("model.ckpt-5")


def train_the_v1_model(folder: str) -> str | None:
    """A program; its ranks import the module, too."""
    from ray.train import ScalingConfig

    use_two_processes(pytest.MonkeyPatch())
    sys.path.insert(0, folder)
    import v1_model

    config = RunConfig(scaling_config=ScalingConfig(num_workers=2))
    estimator = Estimator(v1_model.model_fn, f"{folder}/model", config)
    return estimator.train(v1_model.input_fn, steps=5).latest_checkpoint()
