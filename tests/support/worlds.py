"""The worlds of model_fn, importable by workers: TF1 style, Keras 3 style, legacy (`tf.compat.v1.layers`, tf_keras).

All learn the same toy problem, a classification of rows with four floats and a sequence of five ids.
Keras is imported where it is used: a process of the legacy world has another one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from ray_estimator import EstimatorSpec, ModeKeys

v1 = tf.compat.v1

NUM_ROWS = 320
NUM_FLOATS = 4
SEQUENCE_LENGTH = 5
VOCABULARY = 12
BATCH_SIZE = 32

_rng = np.random.default_rng(11)
X = (_rng.normal(size=(NUM_ROWS, NUM_FLOATS)) + 0.5).astype(np.float32)
IDS = _rng.integers(VOCABULARY, size=(NUM_ROWS, SEQUENCE_LENGTH)).astype(np.int32)
_score = (X - 0.5) @ np.array([1.0, -1.5, 0.5, 2.0]) + np.linspace(-1.5, 1.5, VOCABULARY)[IDS].sum(axis=1)
Y = (_score > 0).astype(np.float32)[:, np.newaxis]


def _batches(num_epochs: int | None) -> tf.data.Dataset:
    rows = tf.data.Dataset.from_tensor_slices(({"x": X, "ids": IDS}, Y))
    return rows.repeat(num_epochs).batch(BATCH_SIZE, drop_remainder=num_epochs is None)


def endless_input_fn() -> tf.data.Dataset:
    """Batches of 32 rows, for ever, in order."""
    return _batches(None)


def one_pass_input_fn() -> tf.data.Dataset:
    """Every row once, in batches of 32."""
    return _batches(1)


def _cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))


# TF1 style


def v1_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """An embedding with sparse gradients and one hidden layer.

    params: `optimizer`, "momentum" or "adam".
    """
    with v1.variable_scope("words"):
        table = v1.get_variable("table", [VOCABULARY, 3], initializer=v1.random_normal_initializer(stddev=0.1, seed=1))
        words = tf.reduce_sum(tf.nn.embedding_lookup(table, features["ids"]), axis=1)
    hidden = tf.nn.relu(_v1_dense(tf.concat([features["x"], words], axis=1), 8, "hidden"))
    logits = _v1_dense(hidden, 1, "logits")
    predictions = {"probability": tf.sigmoid(logits)}
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions=predictions)
    loss = _cross_entropy(labels, logits)
    if mode == ModeKeys.EVAL:
        guesses = tf.cast(logits > 0, tf.float32)
        metrics = {
            "accuracy": v1.metrics.accuracy(labels, guesses),
            "auc": v1.metrics.auc(labels, predictions["probability"]),
            "bias": v1.metrics.mean_tensor(_v1_variable("logits/bias")),
        }
        return EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)
    optimizer = {
        "momentum": lambda: v1.train.MomentumOptimizer(0.1, 0.9),
        "adam": lambda: v1.train.AdamOptimizer(0.02),
    }[params.get("optimizer", "momentum")]()
    train_op = optimizer.minimize(loss, global_step=v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def _v1_dense(inputs: tf.Tensor, units: int, name: str) -> tf.Tensor:
    with v1.variable_scope(name):
        kernel = v1.get_variable("kernel", [inputs.shape[-1], units], initializer=v1.glorot_uniform_initializer(seed=2))
        bias = v1.get_variable("bias", [units], initializer=v1.zeros_initializer())
        return tf.matmul(inputs, kernel) + bias


def _v1_variable(name: str) -> tf.Variable:
    return next(variable for variable in v1.global_variables() if variable.op.name == name)


# Keras 3 style


def keras_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """Embedding, LSTM with dropout, batch normalization, dropout, dense.

    params: `optimizer`, "adam" or "sgd"; `dtype_policy`, to be set in here if given.

    In the graph, `kept` is True where dropout let a value through, and `activation_dtype` names the dtype of the
    hidden layer's output.
    """
    import keras

    if "dtype_policy" in params:
        keras.config.set_dtype_policy(params["dtype_policy"])
    training = mode == ModeKeys.TRAIN
    embedding = keras.layers.Embedding(VOCABULARY, 4)
    lstm = keras.layers.LSTM(6, dropout=0.1)
    hidden_layer = keras.layers.Dense(12, activation="tanh")
    normalization = keras.layers.BatchNormalization(momentum=0.8)
    logits_layer = keras.layers.Dense(1)

    words = lstm(embedding(features["ids"]), training=training)
    hidden = hidden_layer(tf.concat([tf.cast(features["x"], words.dtype), words], axis=1))
    tf.constant(hidden.dtype.name, name="activation_dtype")
    dropped = keras.layers.Dropout(0.25)(hidden, training=training)
    tf.not_equal(dropped, 0, name="kept")
    logits = tf.cast(logits_layer(normalization(dropped, training=training)), tf.float32)
    predictions = {"probability": tf.sigmoid(logits)}
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions=predictions)
    loss = _cross_entropy(labels, logits)
    if mode == ModeKeys.EVAL:
        accuracy = keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)
        accuracy.update_state(labels, logits)
        auc = keras.metrics.AUC(name="auc", num_thresholds=50)
        auc.update_state(labels, predictions["probability"])
        bias = keras.metrics.Mean(name="bias")
        bias.update_state(logits_layer.bias)
        return EstimatorSpec(mode, loss=loss, eval_metric_ops={"accuracy": accuracy, "auc": auc, "bias": bias})
    layers = [embedding, lstm, hidden_layer, normalization, logits_layer]
    return EstimatorSpec(mode, loss=loss, train_op=_minimize(_keras_optimizer(params), loss, layers))


def _keras_optimizer(params: Any) -> Any:
    import keras

    optimizer = {
        "adam": lambda schedule: keras.optimizers.Adam(schedule(0.02)),
        "sgd": lambda schedule: keras.optimizers.SGD(schedule(0.2), momentum=0.9),
    }[params.get("optimizer", "adam")]
    return optimizer(lambda rate: keras.optimizers.schedules.ExponentialDecay(rate, decay_steps=100, decay_rate=0.5))


def _minimize(optimizer: Any, loss: tf.Tensor, layers: list[Any]) -> Any:
    variables = [variable for layer in layers for variable in layer.trainable_variables]
    gradients = tf.gradients(loss, [variable.value for variable in variables])
    train_op = optimizer.apply_gradients(zip(gradients, variables, strict=True))
    tf.identity(optimizer.learning_rate, name="next_learning_rate")
    return train_op


# Legacy: `RunConfig(legacy_keras=True)`, or TF_USE_LEGACY_KERAS=1 before TensorFlow is imported


def legacy_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    """A tf_keras Embedding, then `tf.compat.v1.layers`, whose averages are updated by UPDATE_OPS.

    In the graph, `kept` is True where dropout let a value through.
    """
    training = mode == ModeKeys.TRAIN
    words = tf.reduce_sum(tf.keras.layers.Embedding(VOCABULARY, 4)(features["ids"]), axis=1)
    hidden = v1.layers.dense(tf.concat([features["x"], words], axis=1), 12, activation=tf.nn.tanh)
    dropped = v1.layers.dropout(hidden, 0.25, training=training)
    tf.not_equal(dropped, 0, name="kept")
    logits = v1.layers.dense(v1.layers.batch_normalization(dropped, momentum=0.8, training=training), 1)
    predictions = {"probability": tf.sigmoid(logits)}
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions=predictions)
    loss = _cross_entropy(labels, logits)
    if mode == ModeKeys.EVAL:
        guesses = tf.cast(logits > 0, tf.float32)
        accuracy = tf.keras.metrics.BinaryAccuracy(name="keras_accuracy", threshold=0.0)
        accuracy.update_state(labels, logits)
        metrics = {"accuracy": v1.metrics.accuracy(labels, guesses), "keras_accuracy": accuracy}
        return EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)
    with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
        train_op = v1.train.AdamOptimizer(0.02).minimize(loss, global_step=v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)
