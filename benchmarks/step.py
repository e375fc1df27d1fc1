"""Time of a training step in process: `train`, a bare MonitoredSession with the same hooks, and Keras `fit`.

A 3-layer MLP, 20-64-64-1, at batch 128 with Adam. All three train in this process, taking turns of 200 steps. Time is
measured between steps, so building graphs, opening sessions and saving are excluded.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import sys
import tempfile
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as v1
from _side_by_side import Comparison, LapEveryBlock, Turn, arguments, report, run_concurrently, seconds_of
from ray.train import ScalingConfig

from ray_estimator import Estimator, EstimatorSpec, RunConfig

BLOCK_STEPS = 200
WARM_UP = 3
BATCH_SIZE = 128
UNITS = [20, 64, 64, 1]

_rng = np.random.default_rng(0)
X = _rng.normal(size=(8192, UNITS[0])).astype(np.float32)
Y = (2 * X[:, :1] + X[:, 1:2]).astype(np.float32)


def input_fn() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).repeat().batch(BATCH_SIZE).prefetch(4)


def loss_and_train_op(features: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Operation]:
    values = features
    for number, (inputs, outputs) in enumerate(itertools.pairwise(UNITS)):
        with v1.variable_scope(f"layer_{number}"):
            kernel = v1.get_variable("kernel", [inputs, outputs])
            bias = v1.get_variable("bias", [outputs], initializer=v1.zeros_initializer())
        values = tf.matmul(values, kernel) + bias
        if outputs > 1:
            values = tf.nn.relu(values)
    loss = tf.reduce_mean(tf.square(values - labels))
    return loss, v1.train.AdamOptimizer(1e-3).minimize(loss, global_step=v1.train.get_or_create_global_step())


def model_fn(features: tf.Tensor, labels: tf.Tensor, mode: str) -> EstimatorSpec:
    loss, train_op = loss_and_train_op(features, labels)
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def train(turn: Turn) -> None:
    """Run `Estimator.train` with its defaults."""
    with tempfile.TemporaryDirectory() as folder:
        estimator = Estimator(model_fn, folder, RunConfig(scaling_config=ScalingConfig(num_workers=0)))
        estimator.train(input_fn, steps=BLOCK_STEPS * turn.rounds, hooks=[LapEveryBlock(turn, BLOCK_STEPS)])


def bare_session(turn: Turn) -> None:
    """Run a MonitoredSession with the default hooks of `train`."""
    with tempfile.TemporaryDirectory() as folder, tf.Graph().as_default():
        iterator = v1.data.make_initializable_iterator(input_fn())
        v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
        loss, train_op = loss_and_train_op(*iterator.get_next())
        v1.summary.scalar("loss", loss)
        hooks = [
            v1.train.CheckpointSaverHook(folder, save_secs=600),
            v1.train.StepCounterHook(every_n_steps=100, output_dir=folder),
            v1.train.SummarySaverHook(save_steps=100, output_dir=folder, summary_op=v1.summary.merge_all()),
            LapEveryBlock(turn, BLOCK_STEPS),
            v1.train.StopAtStepHook(last_step=BLOCK_STEPS * turn.rounds),
            v1.train.NanTensorHook(loss),
            v1.train.LoggingTensorHook({"loss": loss, "step": v1.train.get_global_step()}, every_n_iter=100),
        ]
        with v1.train.MonitoredSession(hooks=hooks) as session:
            while not session.should_stop():
                session.run([train_op, loss])


class LapEveryEpoch(keras.callbacks.Callback):
    """Ends a block after each epoch."""

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self._turn = turn

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._turn.lap()


def keras_fit(turn: Turn) -> None:
    """Run Keras `fit`; an epoch is a block."""
    layers = [keras.layers.Dense(units, activation="relu" if units > 1 else None) for units in UNITS[1:]]
    model = keras.Sequential([keras.Input([UNITS[0]]), *layers])
    model.compile("adam", "mse")
    model.fit(input_fn(), steps_per_epoch=BLOCK_STEPS, epochs=turn.rounds, callbacks=[LapEveryEpoch(turn)])


def main() -> int:
    options = arguments(__doc__, rounds=60)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    programs = (train, bare_session, keras_fit)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):

        def run(place: int) -> None:
            turn = Turn(folder, place, len(programs), WARM_UP + options.rounds)
            turn.lap()
            programs[place](turn)

        run_concurrently(*(functools.partial(run, place) for place in range(len(programs))))
        seconds = [seconds_of(folder, place, warm_up=WARM_UP) for place in range(len(programs))]
    ours, bare, fit = ([1e6 * each / BLOCK_STEPS for each in blocks] for blocks in seconds)
    comparisons = [
        Comparison("a step, against a bare MonitoredSession with the same hooks", ours, bare, unit="µs", goal=1.05),
        Comparison("a step, against Keras `fit`", ours, fit, unit="µs", goal=0.45),
    ]
    return report(comparisons, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
