"""Total time of `Estimator.train` for one step on two workers, against `TensorflowTrainer.fit`.

Ray is already running, and each has run once. Both build the same v1 graph under MultiWorkerMirroredStrategy, open a
MonitoredSession, save before and after the step, and exit. Printed below the table: the time from the call of `train`
to the first batch of a Ray Dataset.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import ray
import ray.train
from _side_by_side import Comparison, alternate, arguments, report
from ray.train import ScalingConfig

from ray_estimator import Estimator, EstimatorSpec, RunConfig, dataset_input_fn
from ray_estimator.hooks import SessionRunHook

NUM_FEATURES = 20


def input_fn() -> Any:
    import tensorflow as tf

    rows = tf.random.stateless_normal([512, NUM_FEATURES], seed=[1, 2])
    return tf.data.Dataset.from_tensor_slices((rows, rows[:, :1])).repeat().batch(32)


def loss_and_train_op(features: Any, labels: Any) -> Any:
    import tensorflow as tf
    import tensorflow.compat.v1 as v1

    kernel = v1.get_variable("kernel", [NUM_FEATURES, 1], initializer=v1.glorot_uniform_initializer(seed=1))
    bias = v1.get_variable("bias", [1], initializer=v1.zeros_initializer())
    loss = tf.reduce_mean(tf.square(tf.matmul(features, kernel) + bias - labels))
    return loss, v1.train.AdamOptimizer(0.05).minimize(loss, global_step=v1.train.get_global_step())


def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    loss, train_op = loss_and_train_op(features, labels)
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def ours() -> None:
    with tempfile.TemporaryDirectory() as model_dir:
        config = RunConfig(scaling_config=ScalingConfig(num_workers=2))
        Estimator(model_fn, model_dir, config).train(input_fn, steps=1)


class NoteFirstBatch(SessionRunHook):
    """Records the time when the chief has its first batch."""

    def __init__(self, path: str) -> None:
        self._path = path

    def before_run(self, run_context: Any) -> Any:
        import tensorflow.compat.v1 as v1

        return v1.train.SessionRunArgs("first_batch_at:0")

    def after_run(self, run_context: Any, run_values: Any) -> None:
        Path(self._path).write_text(str(float(run_values.results)))


def timed_model_fn(features: Any, labels: Any, mode: str, params: dict[str, Any]) -> EstimatorSpec:
    import tensorflow as tf

    with tf.control_dependencies([features["x"]]):
        tf.identity(tf.timestamp(), name="first_batch_at")
    loss, train_op = loss_and_train_op(features["x"], labels)
    hooks = [NoteFirstBatch(params["path"])]
    return EstimatorSpec(mode, loss=loss, train_op=train_op, training_chief_hooks=hooks)


def secs_to_first_batch(dataset: Any, num_workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(scaling_config=ScalingConfig(num_workers=num_workers))
        path = os.path.join(folder, "at")
        estimator = Estimator(timed_model_fn, f"{folder}/model", config, {"path": path})
        began = time.time()
        estimator.train(dataset_input_fn(dataset, batch_size=32, label_columns="y"), steps=1)
        return float(Path(path).read_text()) - began


def train_loop(config: dict[str, Any]) -> None:
    """Train a v1 graph under the strategy, as a user of TensorflowTrainer would."""
    import json

    import tensorflow as tf
    import tensorflow.compat.v1 as v1
    from tensorflow.python.training import training_util

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    cluster = json.loads(os.environ["TF_CONFIG"])
    rank = cluster["task"]["index"]
    with tf.Graph().as_default(), strategy.scope(), strategy._scale_loss_for_estimator_enabled():
        global_step = v1.train.create_global_step()
        v1.add_to_collection(training_util.GLOBAL_STEP_READ_KEY, strategy.extended.read_var(global_step))
        iterator = v1.data.make_initializable_iterator(input_fn())
        loss, train_op = strategy.extended.call_for_each_replica(loss_and_train_op, args=iterator.get_next())
        loss = strategy.reduce(tf.distribute.ReduceOp.MEAN, loss, axis=None)
        step = strategy.group(train_op)
        local_init_op = tf.group(v1.local_variables_initializer(), v1.tables_initializer(), iterator.initializer)
        with v1.train.MonitoredTrainingSession(
            master=f"grpc://{cluster['cluster']['worker'][rank]}",
            is_chief=True,
            checkpoint_dir=config["model_dir"] if rank == 0 else None,
            scaffold=v1.train.Scaffold(local_init_op=local_init_op),
            config=strategy.extended._update_config_proto(v1.ConfigProto(allow_soft_placement=True)),
            hooks=[v1.train.StopAtStepHook(num_steps=1)],
            save_checkpoint_steps=100,
            log_step_count_steps=None,
        ) as session:
            while not session.should_stop():
                session.run([loss, step])


def tensorflow_trainer() -> None:
    from ray.train.tensorflow import TensorflowTrainer

    with tempfile.TemporaryDirectory() as folder:
        TensorflowTrainer(
            train_loop,
            train_loop_config={"model_dir": f"{folder}/model"},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(storage_path=folder),
        ).fit()


def main() -> int:
    options = arguments(__doc__, rounds=3)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    ours()
    tensorflow_trainer()
    mine, theirs = alternate(options.rounds, ours, tensorflow_trainer)
    rows = np.random.default_rng(1).normal(size=(512, NUM_FEATURES)).astype(np.float32)
    dataset = ray.data.from_numpy(rows).map_batches(lambda batch: {"x": batch["data"], "y": batch["data"][:, :1]})
    secs = {
        num_workers: [secs_to_first_batch(dataset, num_workers) for _ in range(options.rounds)]
        for num_workers in (1, 2)
    }
    ray.shutdown()
    what = "`train` for one step on 2 workers over a warm Ray, against `TensorflowTrainer.fit`"
    status = report([Comparison(what, mine, theirs, unit="s", goal=0.9)], check=options.check)
    for num_workers, each in secs.items():
        spread = f"{statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})"
        print(f"From `train` to the first batch of a lazy Ray Dataset, num_workers={num_workers}: {spread} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
