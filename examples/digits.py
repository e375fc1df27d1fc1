"""Handwritten digits, from a Ray Dataset to a served SavedModel.

Trains a small network on scikit-learn's digits with two workers on a local Ray, evaluates, predicts, exports, and
serves the export: ``python examples/digits.py [model_dir]``.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.train import ScalingConfig
from sklearn.datasets import load_digits

from ray_estimator import (
    Estimator,
    EstimatorSpec,
    ModeKeys,
    RunConfig,
    ServingInputReceiver,
    dataset_input_fn,
    quiet_tensorflow,
)

with quiet_tensorflow():
    import keras
    import tensorflow as tf

NUM_TEST = 360


def model_fn(features: dict[str, tf.Tensor], labels: tf.Tensor | None, mode: str, params: dict[str, Any]) -> Any:
    """Build two dense layers on the 64 pixels of a scan."""
    network = keras.Sequential(
        [
            keras.layers.Dense(params["hidden_units"], activation="relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(10),
        ]
    )
    logits = network(features["pixels"], training=mode == ModeKeys.TRAIN)
    digit = tf.argmax(logits, axis=1)
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"digit": digit, "probabilities": tf.nn.softmax(logits)})

    loss = tf.compat.v1.losses.sparse_softmax_cross_entropy(labels, logits)
    if mode == ModeKeys.EVAL:
        return EstimatorSpec(
            mode, loss=loss, eval_metric_ops={"accuracy": tf.compat.v1.metrics.accuracy(labels, digit)}
        )

    optimizer = tf.compat.v1.train.AdamOptimizer(params["learning_rate"])
    train_op = optimizer.minimize(loss, global_step=tf.compat.v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def serving_input_receiver_fn() -> ServingInputReceiver:
    """Return the inputs of the served model: scans as rows of 64 floats."""
    pixels = tf.compat.v1.placeholder(tf.float32, [None, 64], name="pixels")
    return ServingInputReceiver({"pixels": pixels}, {"pixels": pixels})


def load_scans() -> tuple[ray.data.Dataset, ray.data.Dataset]:
    """Return the scans as two Ray Datasets, for training and for testing."""
    digits = load_digits()
    pixels = (digits.data / 16.0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(pixels))
    scans = pa.table(
        {
            "pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels[order].ravel()), 64),
            "label": pa.array(digits.target[order].astype(np.int64)),
        }
    )
    return ray.data.from_arrow(scans.slice(NUM_TEST)), ray.data.from_arrow(scans.slice(0, NUM_TEST))


def main(model_dir: str) -> None:
    """Train, evaluate, predict, export and serve."""
    ray.init(num_cpus=4, logging_level="error")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    train, test = load_scans()
    estimator = Estimator(
        model_fn,
        model_dir,
        RunConfig(scaling_config=ScalingConfig(num_workers=2), tf_random_seed=1, save_checkpoints_steps=200),
        params={"hidden_units": 64, "learning_rate": 2e-3},
    )

    print("training on 2 workers")
    estimator.train(dataset_input_fn(train, batch_size=64, label_columns="label", shuffle=True), max_steps=400)

    results = estimator.evaluate(dataset_input_fn(test, batch_size=120, label_columns="label"), name="test")
    print(f"accuracy {results['accuracy']:.4f}  loss {results['loss']:.4f}  at step {results['global_step']}")

    scans = dataset_input_fn(test, batch_size=120, label_columns="label")
    predicted = list(estimator.predict(scans))
    truth = test.take(5)
    for row, scan in zip(predicted[:5], truth, strict=True):
        print(f"predicted {row['digit']} ({row['probabilities'].max():.2f}), label {scan['label']}")

    export_dir = estimator.export_savedmodel(f"{model_dir}/export", serving_input_receiver_fn)
    served = tf.saved_model.load(export_dir).signatures["serving_default"]
    answer = served(tf.constant([scan["pixels"] for scan in truth], tf.float32))
    difference = np.abs(answer["probabilities"] - np.stack([row["probabilities"] for row in predicted[:5]])).max()
    if difference > 1e-5:
        raise SystemExit(f"The export differs from predict by {difference}.")
    print(f"exported to {export_dir}; it gives the same results as predict (difference {difference:.1e})")

    for name in estimator.get_variable_names():
        print(f"variable {name} {estimator.get_variable_value(name).shape}")
    print(f"model_dir {estimator.model_dir}")
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="digits-"))
