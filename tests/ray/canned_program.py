"""Trains canned estimators for ten steps, one of them on one worker and on two: `canned_program.py MODEL_DIR`.

This process runs Keras 3; its workers run legacy Keras. Each step sees the same eight rows, shared by the workers.
"""

import json
import sys

import ray_estimator

ray_estimator.install()

# ruff: noqa: E402
import numpy as np
import tensorflow as tf
from ray.train import ScalingConfig

v1 = tf.compat.v1
X = np.random.default_rng(0).normal(size=(80, 2)).astype("float32")
Y = (X[:, :1] - X[:, 1:] > 0).astype("int64")


def input_fn(input_context):
    rows = tf.data.Dataset.from_tensor_slices(({"x": X}, Y))
    mine = rows.shard(input_context.num_input_pipelines, input_context.input_pipeline_id)
    return mine.batch(8 // input_context.num_input_pipelines)


def one_pass():
    return tf.data.Dataset.from_tensor_slices(({"x": X}, Y)).batch(16)


def dnn_of_tf(config):
    return tf.estimator.DNNClassifier(
        [4], [tf.feature_column.numeric_column("x", (2,))], optimizer=make_sgd, config=config
    )


def make_sgd():
    return tf.keras.optimizers.legacy.SGD(0.5)


def linear_of_tf_compat_v1(config):
    columns = [v1.feature_column.numeric_column("x", (2,))]
    return v1.estimator.LinearClassifier(columns, optimizer=v1.train.GradientDescentOptimizer(0.05), config=config)


def trained(make, model_dir, num_workers):
    config = tf.estimator.RunConfig(
        f"{model_dir}/{make.__name__}-{num_workers}",
        tf_random_seed=1,
        scaling_config=ScalingConfig(num_workers=num_workers),
        legacy_keras=True,
    )
    return make(config).train(input_fn)


def seen_of(estimator):
    weights = {name: estimator.get_variable_value(name).tolist() for name in estimator.get_variable_names()}
    result = {key: float(value) for key, value in estimator.evaluate(one_pass).items()}
    rows = [int(row["class_ids"][0]) for row in estimator.predict(one_pass, predict_keys=["class_ids"])]
    return {"weights": weights, "result": result, "rows": rows}


def main(model_dir):
    one, two = (seen_of(trained(dnn_of_tf, model_dir, num_workers)) for num_workers in (1, 2))
    linear = seen_of(trained(linear_of_tf_compat_v1, model_dir, 2))
    print(json.dumps({"dnn on one": one, "dnn on two": two, "linear on two": linear}))


if __name__ == "__main__":
    main(sys.argv[1])
