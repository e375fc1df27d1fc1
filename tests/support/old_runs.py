"""A run of tf.estimator's: its model, its input, and a writer of its model_dir made of TensorFlow's own parts.

Knows nothing of ray_estimator, and runs on TensorFlow 2.15 too: see tests/data/make_old_run.py.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1

NUM_ROWS = 64
BATCH_SIZE = 16

_rng = np.random.default_rng(3)
X = _rng.normal(size=(NUM_ROWS, 4)).astype(np.float32)
IDS = _rng.integers(6, size=(NUM_ROWS, 3)).astype(np.int32)
Y = (X[:, :1] - 0.5 * X[:, 1:2] + 0.3 * IDS.sum(axis=1, keepdims=True) - 2.0).astype(np.float32)


def endless_input_fn() -> tf.data.Dataset:
    """Batches of 16 rows, for ever, in order."""
    return tf.data.Dataset.from_tensor_slices(({"x": X, "ids": IDS}, Y)).repeat().batch(BATCH_SIZE)


def one_pass_input_fn() -> tf.data.Dataset:
    """Every row once, in batches of 16."""
    return tf.data.Dataset.from_tensor_slices(({"x": X, "ids": IDS}, Y)).batch(BATCH_SIZE)


def model_of(spec: Callable[..., Any], *, averages: bool = True) -> Callable[..., Any]:
    """The model_fn.

    Args:
        spec: The class of EstimatorSpec that it returns.
        averages: Whether it keeps moving averages.
    """
    return functools.partial(_model_fn, spec, averages=averages)


def _model_fn(spec: Callable[..., Any], features: Any, labels: Any, mode: str, averages: bool) -> Any:
    """A partitioned embedding and two dense layers, trained by Adam.

    Args:
        spec: See `model_of`.
        features: `x` ``[batch, 4]`` and `ids` ``[batch, 3]``.
        labels: ``[batch, 1]``.
        mode: tf.estimator's.
        averages: See `model_of`.
    """
    with v1.variable_scope("input", partitioner=v1.fixed_size_partitioner(2)):
        table = v1.get_variable("words", [6, 3], initializer=v1.random_normal_initializer(stddev=0.1, seed=1))
        words = tf.reduce_sum(v1.nn.embedding_lookup(table, features["ids"], partition_strategy="div"), axis=1)
    hidden = tf.nn.tanh(_dense(tf.concat([features["x"], words], axis=1), 5, "hidden"))
    outputs = _dense(hidden, 1, "outputs")
    if mode == "infer":
        return spec(mode, predictions={"y": outputs, "hidden": hidden})
    loss = tf.reduce_mean(tf.square(outputs - labels))
    metrics = {
        "error": v1.metrics.mean_absolute_error(labels, outputs),
        "large": v1.metrics.accuracy(labels > 0, outputs > 0),
    }
    if mode == "eval":
        return spec(mode, loss=loss, eval_metric_ops=metrics)
    step = v1.train.get_or_create_global_step()
    train_op = v1.train.AdamOptimizer(0.05).minimize(loss, global_step=step)
    if averages:
        averaged = [variable for variable in v1.trainable_variables() if "outputs" in variable.name]
        with tf.control_dependencies([train_op]):
            train_op = v1.train.ExponentialMovingAverage(0.9).apply(averaged)
    return spec(mode, loss=loss, train_op=train_op)


def _dense(inputs: Any, units: int, name: str) -> Any:
    with v1.variable_scope(name):
        kernel = v1.get_variable("kernel", [inputs.shape[-1], units], initializer=v1.glorot_uniform_initializer(seed=2))
        bias = v1.get_variable("bias", [units], initializer=v1.zeros_initializer())
        return tf.matmul(inputs, kernel) + bias


def train_as_before(
    model_dir: str,
    build: Callable[[Any, Any, str], Any],
    input_fn: Callable[[], tf.data.Dataset] = endless_input_fn,
    *,
    last_step: int,
    save_steps: int = 5,
    keep: int = 3,
    relative_paths: bool = True,
    hooks: Sequence[Any] = (),
) -> None:
    """Trains to `last_step` as tf.estimator's `train` did: its session, its saver, its hooks, its files.

    Args:
        model_dir: Where; goes on from what is there.
        build: A model_fn of features, labels and mode, which returns anything with `loss` and `train_op`.
        input_fn: The input.
        last_step: The global step to end at.
        save_steps: Steps between checkpoints.
        keep: How many checkpoints to keep.
        relative_paths: Whether the state file names checkpoints by relative paths. tf.estimator's own saver did; a
            saver of the user's did not.
        hooks: More hooks.
    """
    with tf.Graph().as_default():
        v1.set_random_seed(1)
        step = v1.train.create_global_step()
        iterator = v1.data.make_initializable_iterator(input_fn())
        v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
        spec = build(*iterator.get_next(), "train")
        v1.summary.scalar("loss", spec.loss)
        saver = v1.train.Saver(
            sharded=True,
            max_to_keep=keep,
            keep_checkpoint_every_n_hours=10000,
            defer_build=True,
            save_relative_paths=relative_paths,
        )
        v1.add_to_collection(v1.GraphKeys.SAVERS, saver)
        scaffold = v1.train.Scaffold()
        chief_hooks = [v1.train.CheckpointSaverHook(model_dir, save_steps=save_steps, scaffold=scaffold)]
        every_hook = [v1.train.StopAtStepHook(last_step=last_step), *hooks]
        with v1.train.MonitoredTrainingSession(
            checkpoint_dir=model_dir,
            scaffold=scaffold,
            hooks=every_hook,
            chief_only_hooks=chief_hooks,
            save_checkpoint_secs=0,
            save_summaries_steps=5,
            log_step_count_steps=100,
        ) as session:
            while not session.should_stop():
                session.run([spec.train_op, spec.loss, step])


def write_evaluation(model_dir: str, step: int, **values: float) -> None:
    """Writes the event of an evaluation where tf.estimator's `evaluate` did."""
    with tf.Graph().as_default():
        writer = v1.summary.FileWriter(os.path.join(model_dir, "eval"))
        summary = v1.Summary(value=[v1.Summary.Value(tag=name, simple_value=each) for name, each in values.items()])
        writer.add_summary(summary, step)
        writer.close()


def variables_in(checkpoint: str) -> dict[str, np.ndarray]:
    """Every variable of a checkpoint, or of the newest of a model_dir, by name."""
    reader = tf.train.load_checkpoint(checkpoint)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
