"""A run of `tf.layers`, written as tf.estimator did, trains on here: `old_layers_script.py FOLDER`.

The process has TF_USE_LEGACY_KERAS=1.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
from ray.train import ScalingConfig
from support.old_runs import endless_input_fn, one_pass_input_fn, train_as_before, variables_in

from ray_estimator import Estimator, EstimatorSpec, RunConfig

v1 = tf.compat.v1


def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    """Dense layers with batch normalization."""
    hidden = v1.layers.dense(features["x"], 6, activation=tf.nn.relu)
    hidden = v1.layers.batch_normalization(hidden, training=mode == "train", momentum=0.8)
    outputs = v1.layers.dense(hidden, 1, name="outputs")
    loss = tf.reduce_mean(tf.square(outputs - labels))
    with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
        train_op = v1.train.MomentumOptimizer(0.05, 0.9).minimize(loss, global_step=v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def main(folder: str) -> None:
    old, there = f"{folder}/old", f"{folder}/there"
    train_as_before(old, model_fn, last_step=12)
    shutil.copytree(old, there)
    train_as_before(there, model_fn, last_step=20)

    config = RunConfig(old, scaling_config=ScalingConfig(num_workers=0), legacy_keras=True)
    estimator = Estimator(model_fn, config=config).train(endless_input_fn, steps=8)

    ours, theirs = variables_in(old), variables_in(there)
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    assert {"dense/kernel/Momentum", "batch_normalization/moving_variance"} < ours.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-7, err_msg=name)
    assert estimator.evaluate(one_pass_input_fn)["global_step"] == 20
    print("tf.layers go on")


if __name__ == "__main__":
    main(sys.argv[1])
