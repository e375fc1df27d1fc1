"""A run of every verb whose driver imports no TensorFlow: `progress_program.py MODEL_DIR`. Its output is tested.

A worker dies on its way. In the end the program prints what Ray's metrics endpoint tells.
"""

import functools
import json
import logging
import os
import re
import signal
import sys
import time
import urllib.request

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


def dying_hook(flag):
    """Kills the second worker at its hundredth step, once."""
    import tensorflow as tf

    class DieOnce(tf.compat.v1.train.SessionRunHook):
        num_steps = 0

        def after_run(self, run_context, run_values):
            self.num_steps += 1
            is_second = json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1
            if is_second and self.num_steps == 100 and not os.path.exists(flag):
                open(flag, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)

    return DieOnce()


def receiver_fn():
    import tensorflow as tf

    x = tf.compat.v1.placeholder(tf.float32, [None], "x")
    return ServingInputReceiver({"x": x}, {"x": x})


def metrics_endpoint():
    """What Prometheus would read of this node, once the newest state has arrived there."""
    node = ray.nodes()[0]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        if re.search(r"^ray_estimator_checkpoint_step.* 200(\.0)?$", text, flags=re.M):
            break
        time.sleep(0.5)
    return [line for line in text.splitlines() if line.startswith("ray_estimator_")]


def main(model_dir):
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        logging_level="warning",
        _system_config={"metrics_report_interval_ms": 500},
    )
    x = [float(number % 4) for number in range(256)]
    rows = ray.data.from_arrow(pa.table({"x": pa.array(x, pa.float32()), "y": pa.array(x, pa.float32())}))
    config = RunConfig(scaling_config=ScalingConfig(num_workers=2))
    estimator = Estimator(model_fn, model_dir, config)
    input_fn = dataset_input_fn(rows, batch_size=16, label_columns="y")
    estimator.train(input_fn, max_steps=200, hooks=[functools.partial(dying_hook, f"{model_dir}.died")])
    estimator.evaluate(input_fn)
    print("rows:", len(list(estimator.predict(input_fn))))
    print("export:", estimator.export_saved_model(f"{model_dir}/export", receiver_fn))
    print(*metrics_endpoint(), sep="\n")
    assert "tensorflow" not in sys.modules


if __name__ == "__main__":
    main(sys.argv[1])
    ray.shutdown()
