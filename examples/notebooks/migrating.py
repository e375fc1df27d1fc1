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
# # Migrating from tf.estimator
#
# A program written for tf.estimator runs unchanged after `install()`, which restores the names. This notebook has three
# steps: run the program in this process, train it on workers, and feed it from a Ray Dataset.

# %%
import tempfile

import ray_estimator

ray_estimator.install()

with ray_estimator.quiet_tensorflow():
    import tensorflow as tf

import numpy as np

# %% [markdown]
# ## The old program
#
# It uses feature columns, TF1 variables and `tf.estimator` names. Nothing in it depends on Ray.

# %%
rng = np.random.default_rng(0)
size = rng.uniform(0, 1, 1024).astype("float32")
city = rng.choice(["Bonn", "Köln", "Trier"], 1024).astype(object)
X = {"size": size, "city": city}
y = (3 * size + np.where(city == "Köln", 2.0, 0.0)).astype("float32")


def model_fn(features, labels, mode, params):
    columns = [
        tf.feature_column.numeric_column("size"),
        tf.feature_column.indicator_column(
            tf.feature_column.categorical_column_with_vocabulary_list("city", ["Bonn", "Köln", "Trier"])
        ),
    ]
    inputs = tf.compat.v1.feature_column.input_layer(features, columns)
    kernel = tf.compat.v1.get_variable("kernel", [4, 1])
    price = tf.matmul(inputs, kernel)[:, 0]
    if mode == tf.estimator.ModeKeys.PREDICT:
        return tf.estimator.EstimatorSpec(mode, predictions={"price": price})
    loss = tf.compat.v1.losses.mean_squared_error(labels, price)
    if mode == tf.estimator.ModeKeys.EVAL:
        metrics = {"error": tf.compat.v1.metrics.mean_absolute_error(labels, price)}
        return tf.estimator.EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)
    optimizer = tf.compat.v1.train.AdagradOptimizer(params["learning_rate"])
    train_op = optimizer.minimize(loss, global_step=tf.compat.v1.train.get_global_step())
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)


inputs = tf.compat.v1.estimator.inputs.numpy_input_fn(X, y, batch_size=64, num_epochs=40, shuffle=True)
once = tf.compat.v1.estimator.inputs.numpy_input_fn(X, y, batch_size=64, num_epochs=1, shuffle=False)

# %% [markdown]
# ## 1. In this process
#
# `num_workers=0` runs the same engine in this process, without Ray. Use it to debug a model_fn, with closures and
# breakpoints.

# %%
from ray.train import ScalingConfig

model_dir = tempfile.mkdtemp(prefix="migrating-")
here = tf.estimator.RunConfig(scaling_config=ScalingConfig(num_workers=0), tf_random_seed=1)
estimator = tf.estimator.Estimator(model_fn, model_dir, here, params={"learning_rate": 0.5})
estimator.train(inputs, max_steps=200)
before = estimator.evaluate(once)
before

# %% [markdown]
# ## 2. On workers
#
# One line changes. Training continues from the checkpoint of step 200, because the layout of model_dir is the same.

# %%
import ray

ray.init(num_cpus=4, logging_level="error")

workers = here.replace(scaling_config=ScalingConfig(num_workers=2))
estimator = tf.estimator.Estimator(model_fn, model_dir, workers, params={"learning_rate": 0.5})
estimator.train(inputs, max_steps=400)

# %% [markdown]
# ## 3. From a Ray Dataset
#
# An input_fn runs on every worker, and each worker reads all of its data, as in tf.estimator. A Ray Dataset is sharded
# among the workers: each row is read once per epoch. Evaluation runs in parallel tasks and gives the same results as
# one pass.

# %%
import pyarrow as pa

houses = ray.data.from_arrow(pa.table({"size": size, "city": list(city), "price": y}))
dataset = ray_estimator.dataset_input_fn(houses, batch_size=64, label_columns="price", shuffle=True)
estimator.train(dataset, max_steps=600)
after = estimator.evaluate(dataset)
after

# %%
assert after["global_step"] == 600
assert after["loss"] < before["loss"]
assert np.isclose(after["error"], estimator.evaluate(once)["error"], rtol=1e-5)
ray.shutdown()
