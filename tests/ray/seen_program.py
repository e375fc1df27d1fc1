"""A run of every verb whose driver imports no TensorFlow: `seen_program.py MODEL_DIR`. Its output is what is tested."""

import logging
import sys

import pyarrow as pa
import ray
from ray.train import ScalingConfig

from ray_estimator import Estimator, EstimatorSpec, ModeKeys, RunConfig, ServingInputReceiver, dataset_input_fn


def model_fn(features, labels, mode):
    import tensorflow as tf

    print(f"printed in {mode}")
    logging.getLogger("mine").warning("logged in %s", mode)
    v1 = tf.compat.v1
    slope = v1.get_variable("slope", [], initializer=v1.zeros_initializer())
    y = slope * features["x"]
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"y": y})
    loss = tf.reduce_mean(tf.square(y - labels))
    if mode == ModeKeys.EVAL:
        return EstimatorSpec(mode, loss=loss, eval_metric_ops={"mae": v1.metrics.mean_absolute_error(labels, y)})
    train_op = v1.train.GradientDescentOptimizer(0.1).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def receiver_fn():
    import tensorflow as tf

    x = tf.compat.v1.placeholder(tf.float32, [None], "x")
    return ServingInputReceiver({"x": x}, {"x": x})


def main(model_dir):
    ray.init(num_cpus=4, include_dashboard=False, logging_level="warning")
    x = [float(number % 4) for number in range(256)]
    rows = ray.data.from_arrow(pa.table({"x": pa.array(x, pa.float32()), "y": pa.array(x, pa.float32())}))
    config = RunConfig(scaling_config=ScalingConfig(num_workers=2))
    estimator = Estimator(model_fn, model_dir, config)
    input_fn = dataset_input_fn(rows, batch_size=16, label_columns="y")
    estimator.train(input_fn, max_steps=200)
    estimator.evaluate(input_fn)
    print("rows:", len(list(estimator.predict(input_fn))))
    print("export:", estimator.export_saved_model(f"{model_dir}/export", receiver_fn))
    assert "tensorflow" not in sys.modules


if __name__ == "__main__":
    main(sys.argv[1])
    ray.shutdown()
