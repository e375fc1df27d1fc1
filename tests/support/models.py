"""Small models and inputs for the tests, importable by workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from ray_estimator import EstimatorSpec, ModeKeys

v1 = tf.compat.v1

NUM_ROWS = 256
NUM_FEATURES = 4
WEIGHTS = np.array([[1.0], [-2.0], [0.5], [3.0]], np.float32)

_rng = np.random.default_rng(7)
X = _rng.normal(size=(NUM_ROWS, NUM_FEATURES)).astype(np.float32)
Y = (X @ WEIGHTS + 0.25).astype(np.float32)


def linear_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """A linear regression in TF1 style; features are one Tensor ``[batch, 4]`` or a dict with ``x``."""
    x = features["x"] if isinstance(features, dict) else features
    with v1.variable_scope("dense"):
        kernel = v1.get_variable("kernel", [NUM_FEATURES, 1], initializer=v1.ones_initializer())
        bias = v1.get_variable("bias", [1], initializer=v1.zeros_initializer())
    prediction = tf.matmul(x, kernel) + bias
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"y": prediction, "x": x})
    loss = tf.reduce_mean(tf.square(prediction - labels))
    if mode == ModeKeys.EVAL:
        return EstimatorSpec(
            mode, loss=loss, eval_metric_ops={"mae": v1.metrics.mean_absolute_error(labels, prediction)}
        )
    optimizer = v1.train.GradientDescentOptimizer(params.get("learning_rate", 0.05))
    train_op = optimizer.minimize(loss, global_step=v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def endless_input_fn() -> tf.data.Dataset:
    """Batches of 32 rows, for ever, in order."""
    return tf.data.Dataset.from_tensor_slices((X, Y)).repeat().batch(32)


def one_pass_input_fn() -> tf.data.Dataset:
    """Every row once, in batches of 32."""
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)
