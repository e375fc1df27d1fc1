"""A training job to start from: reads Parquet, writes checkpoints and a SavedModel to any store.

On a cluster, from the root of the repository:

    ray job submit --working-dir . -- python examples/train_job.py --data s3://bucket/rows --model-dir s3://bucket/run

On a local Ray: ``python examples/train_job.py --model-dir /tmp/run``. Without ``--data`` it trains on scikit-learn's
handwritten digits, which it writes as Parquet first.

If the job is stopped, submit it again: it resumes from the newest checkpoint with the next row. Once ``--max-steps`` is
reached, it only evaluates and exports. For your own data, change `model_fn`, `serving_input_receiver_fn` and LABEL.
"""

from __future__ import annotations

import argparse
import json
import logging
from typing import Any

import fsspec
import keras
import ray
import tensorflow as tf
from ray.train import ScalingConfig

from ray_estimator import (
    DatasetInput,
    Estimator,
    EstimatorSpec,
    EvalSpec,
    ModeKeys,
    RunConfig,
    ServingInputReceiver,
    TrainSpec,
    dataset_input_fn,
    train_and_evaluate,
)

LABEL = "label"


def model_fn(features: dict[str, tf.Tensor], labels: tf.Tensor | None, mode: str, params: dict[str, Any]) -> Any:
    """Build two dense layers on the 64 pixels of a scan."""
    network = keras.Sequential([keras.layers.Dense(params["hidden_units"], activation="relu"), keras.layers.Dense(10)])
    logits = network(features["pixels"])
    digit = tf.argmax(logits, axis=1)
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"digit": digit, "probabilities": tf.nn.softmax(logits)})

    loss = tf.compat.v1.losses.sparse_softmax_cross_entropy(labels, logits)
    if mode == ModeKeys.EVAL:
        accuracy = tf.compat.v1.metrics.accuracy(labels, digit)
        return EstimatorSpec(mode, loss=loss, eval_metric_ops={"accuracy": accuracy})

    optimizer = tf.compat.v1.train.AdamOptimizer(params["learning_rate"])
    train_op = optimizer.minimize(loss, global_step=tf.compat.v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def serving_input_receiver_fn() -> ServingInputReceiver:
    """Return the inputs of the served model: scans as rows of 64 floats."""
    pixels = tf.compat.v1.placeholder(tf.float32, [None, 64], name="pixels")
    return ServingInputReceiver({"pixels": pixels}, {"pixels": pixels})


def write_digits(folder: str, storage_options: dict[str, Any]) -> tuple[str, str]:
    """Write scikit-learn's digits as Parquet files if they do not exist; return the URLs for training and testing."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.data / 16.0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(pixels))
    scans = pa.table(
        {
            "pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels[order].ravel()), 64),
            LABEL: pa.array(digits.target[order].astype(np.int64)),
        }
    )
    train, test = f"{folder}/train.parquet", f"{folder}/test.parquet"
    for url, rows in ((train, scans.slice(360)), (test, scans.slice(0, 360))):
        store, path = fsspec.core.url_to_fs(url, **storage_options)
        if not store.exists(path):
            store.makedirs(path.rpartition("/")[0], exist_ok=True)
            with store.open(path, "wb") as file:
                pq.write_table(rows, file)
    return train, test


def read(url: str, storage_options: dict[str, Any], *, in_memory: bool) -> ray.data.Dataset:
    """Return the rows of a Parquet file or directory, read in each epoch, or once into memory."""
    store, path = fsspec.core.url_to_fs(url, **storage_options)
    rows = ray.data.read_parquet(path, filesystem=store)
    return rows.materialize() if in_memory else rows


def batches(dataset: ray.data.Dataset, batch_size: int, *, shuffle: bool = False) -> DatasetInput:
    """Return an input_fn."""
    return dataset_input_fn(dataset, batch_size=batch_size, label_columns=LABEL, shuffle=shuffle, seed=1)


def main() -> None:
    """Train, evaluate every `--eval-every` steps, and export at the end."""
    given = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options, model_dir = given.storage_options, given.model_dir.rstrip("/")
    if given.data is None:
        given.data, given.eval_data = write_digits(f"{model_dir}/data", options)
        given.in_memory = True

    estimator = Estimator(
        model_fn,
        model_dir,
        RunConfig(
            scaling_config=ScalingConfig(num_workers=given.num_workers, use_gpu=given.use_gpu),
            save_checkpoints_steps=given.eval_every,
            storage_options=options,
        ),
        params={"hidden_units": 64, "learning_rate": 2e-3},
    )
    train = read(given.data, options, in_memory=given.in_memory)
    test = train if given.eval_data is None else read(given.eval_data, options, in_memory=given.in_memory)
    # Evaluates the newest checkpoint as soon as the cluster has free resources.
    metrics, _ = train_and_evaluate(
        estimator,
        TrainSpec(batches(train, given.batch_size, shuffle=True), max_steps=given.max_steps),
        EvalSpec(batches(test, given.batch_size), steps=None, start_delay_secs=0, throttle_secs=1),
    )
    print(f"evaluated: {metrics}")
    exported = estimator.export_saved_model(given.export_dir or f"{model_dir}/export", serving_input_receiver_fn)
    print(f"exported to {exported}")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Train, evaluate and export a model on Ray.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", help="Parquet file or directory, path or URL; if omitted, digits")
    parser.add_argument("--eval-data", help="the same for evaluation; if omitted, --data")
    parser.add_argument("--in-memory", action="store_true", help="read the data into memory once; always on for digits")
    parser.add_argument("--model-dir", required=True, help="for checkpoints; with several nodes a URL or a shared path")
    parser.add_argument("--max-steps", type=int, default=1000, help="global step at which to stop")
    parser.add_argument("--num-workers", type=int, default=1, help="training workers; 0 trains in this process")
    parser.add_argument("--use-gpu", action="store_true", help="give each worker a GPU")
    parser.add_argument("--batch-size", type=int, default=64, help="rows per batch on each worker")
    parser.add_argument("--eval-every", type=int, default=200, help="steps between checkpoints and evaluations")
    parser.add_argument("--export-dir", help="directory for the SavedModel; if omitted, MODEL_DIR/export")
    parser.add_argument(
        "--storage-options",
        type=json.loads,
        default={},
        help="fsspec options as JSON, for example an endpoint; keep credentials in the environment",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
