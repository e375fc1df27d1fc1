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
# # First steps
#
# Train a model on Ray, evaluate it, predict with it, export it. This notebook starts a local Ray. On a cluster,
# `ray.init()` connects to it.

# %%
import tempfile

import numpy as np
import pyarrow as pa
import ray
from ray.train import ScalingConfig

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
    import tensorflow as tf

ray.init(num_cpus=4, logging_level="error")

# %% [markdown]
# ## The data
#
# The data is a Ray Dataset: here a table in memory, usually Parquet on an object store. The price of a house depends on
# its rooms and its age.

# %%
rng = np.random.default_rng(0)
rooms = rng.uniform(1, 6, 4000).astype("float32")
age = rng.uniform(0, 1, 4000).astype("float32")
table = pa.table({"rooms": rooms, "age": age, "price": 3 * rooms - 2 * age})
houses = ray.data.from_arrow(table.slice(0, 3000))
others = ray.data.from_arrow(table.slice(3000))

# %% [markdown]
# ## The model
#
# A model_fn builds a graph for each of three modes. It is serialized and runs on the workers, so it can be defined in
# this notebook.


# %%
def model_fn(features, labels, mode, params):
    weights = tf.compat.v1.get_variable("weights", [2, 1])
    price = tf.matmul(tf.stack([features["rooms"], features["age"]], axis=1), weights)[:, 0]
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"price": price})
    loss = tf.reduce_mean(tf.square(price - labels))
    if mode == ModeKeys.EVAL:
        error = tf.compat.v1.metrics.mean_absolute_error(labels, price)
        return EstimatorSpec(mode, loss=loss, eval_metric_ops={"error": error})
    optimizer = tf.compat.v1.train.AdamOptimizer(params["learning_rate"])
    train_op = optimizer.minimize(loss, global_step=tf.compat.v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


# %% [markdown]
# ## Train
#
# Train on two synchronous workers. If you interrupt the cell, training saves a checkpoint and stops; run the cell again
# to continue.

# %%
estimator = Estimator(
    model_fn,
    model_dir=tempfile.mkdtemp(prefix="houses-"),
    config=RunConfig(scaling_config=ScalingConfig(num_workers=2), tf_random_seed=1),
    params={"learning_rate": 0.05},
)
input_fn = dataset_input_fn(houses, batch_size=64, label_columns="price", shuffle=True)
estimator.train(input_fn, max_steps=600)

# %% [markdown]
# ## Evaluate and predict
#
# Use houses that the model has not seen. Predictions are in dataset order.

# %%
unseen = dataset_input_fn(others, batch_size=100, label_columns="price")
results = estimator.evaluate(unseen)
results

# %%
predicted = np.array([row["price"] for row in estimator.predict(unseen)])
assert len(predicted) == 1000
assert results["error"] < 0.2
assert np.isclose(np.abs(predicted - table["price"].to_numpy()[3000:]).mean(), results["error"], rtol=1e-3)
predicted[:5], table["price"].to_numpy()[3000:3005]

# %% [markdown]
# ## Export
#
# The export is a SavedModel for TensorFlow Serving and `tf.saved_model.load`.


# %%
def serving_input_receiver_fn():
    inputs = {name: tf.compat.v1.placeholder(tf.float32, [None], name) for name in ("rooms", "age")}
    return ServingInputReceiver(inputs, inputs)


path = estimator.export_saved_model(tempfile.mkdtemp(), serving_input_receiver_fn)
served = tf.saved_model.load(path).signatures["serving_default"]
served(rooms=tf.constant([2.0]), age=tf.constant([0.5]))["price"].numpy()

# %%
ray.shutdown()
