# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: -all
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evaluate and predict on a cluster
#
# Evaluation and prediction run as parallel Ray tasks over ranges of rows. Metrics equal those of a single pass, and
# rows are returned in input order.

# %%
import tempfile

import numpy as np
import pyarrow as pa
import ray
from ray.train import ScalingConfig

from ray_estimator import Estimator, EstimatorSpec, ModeKeys, RunConfig, dataset_input_fn, quiet_tensorflow

with quiet_tensorflow():
    import tensorflow as tf

ray.init(num_cpus=4, logging_level="error")

# %% [markdown]
# ## A classifier
#
# It separates points inside a circle from points outside, and is trained in this process: `num_workers=0`.

# %%
rng = np.random.default_rng(0)
points = rng.normal(size=(200_000, 2)).astype("float32")
inside = (np.linalg.norm(points, axis=1) < 1.2).astype("int64")
table = pa.table({"id": np.arange(200_000), "x": points[:, 0], "y": points[:, 1], "inside": inside})


def model_fn(features, labels, mode):
    v1 = tf.compat.v1
    inputs = tf.stack([features["x"], features["y"]], axis=1)
    hidden = tf.nn.relu(tf.matmul(inputs, v1.get_variable("hidden", [2, 32])) + v1.get_variable("bias", [32]))
    logit = tf.matmul(hidden, v1.get_variable("out", [32, 1]))[:, 0]
    probability = tf.sigmoid(logit)
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"probability": probability})
    loss = v1.losses.sigmoid_cross_entropy(labels, logit)
    if mode == ModeKeys.EVAL:
        metrics = {
            "auc": v1.metrics.auc(labels, probability, num_thresholds=1000),
            "accuracy": v1.metrics.accuracy(labels, tf.cast(probability > 0.5, tf.int64)),
        }
        return EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)
    train_op = v1.train.AdamOptimizer(0.01).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


model_dir = tempfile.mkdtemp(prefix="circle-")
alone = RunConfig(scaling_config=ScalingConfig(num_workers=0), tf_random_seed=1)
here = Estimator(model_fn, model_dir, alone)
train = dataset_input_fn(ray.data.from_arrow(table.slice(0, 50_000)), batch_size=256, label_columns="inside")
here.train(train, max_steps=600)

# %% [markdown]
# ## Evaluate in tasks
#
# An Estimator with workers reads the same model_dir. Each task returns the state of its metrics rather than their
# values. The merged states give the same results as one pass, also for AUC.

# %%
rows = ray.data.from_arrow([table.slice(start, 25_000) for start in range(0, 200_000, 25_000)])
everything = dataset_input_fn(rows, batch_size=512, label_columns="inside")

cluster = Estimator(model_fn, model_dir, RunConfig(scaling_config=ScalingConfig(num_workers=1), max_tasks_in_flight=4))
in_tasks = cluster.evaluate(everything)
in_one_pass = here.evaluate(everything)
for metric in ("auc", "accuracy", "loss"):
    print(f"{metric:10} {in_tasks[metric]:.6f} in tasks   {in_one_pass[metric]:.6f} in one pass")
    assert np.isclose(in_tasks[metric], in_one_pass[metric], rtol=1e-5)

# %% [markdown]
# ## Predict as a stream
#
# `predict` returns a generator in row order, which prefetches a bounded number of tasks. Closing it early schedules no
# further work.

# %%
stream = cluster.predict(everything)
first = [float(next(stream)["probability"]) for _ in range(5)]
stream.close()
np.round(first, 3), inside[:5]

# %% [markdown]
# ## Predict to files
#
# `predict_dataset` is lazy and keeps the columns that you name. The tasks write the files, so no row passes through the
# driver.

# %%
folder = tempfile.mkdtemp(prefix="predicted-")
cluster.predict_dataset(everything, keep_columns=["id", "inside"]).write_parquet(folder)

# %%
written = ray.data.read_parquet(folder).to_pandas().sort_values("id")
assert list(written["id"]) == list(range(200_000))
assert np.allclose(written["probability"][:5], first, atol=1e-5)
accuracy = ((written["probability"] > 0.5) == written["inside"].astype(bool)).mean()
assert np.isclose(accuracy, in_tasks["accuracy"], atol=1e-4)
ray.shutdown()
written.head()
