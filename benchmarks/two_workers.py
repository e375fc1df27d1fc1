"""Two workers: what a step costs over the same strategy in a tf.function, and how much faster two are than one.

The first part takes a step of next to nothing, which leaves what the ranks say to each other. The second takes a step
that only computes, with each worker's threads held to one CPU.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers would give way to the peer's plain processes
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import ray
import tensorflow as tf
import tensorflow.compat.v1 as v1
from _side_by_side import Comparison, StepTimer, alternated, arguments, report, seconds_per_step
from ray.train import ScalingConfig

from ray_estimator import Estimator, EstimatorSpec, RunConfig

FIRST, LAST = 200, 1200
HEAVY_FIRST, HEAVY_LAST = 10, 50
HEAVY_ROWS, HEAVY_UNITS, HEAVY_LAYERS = 2048, 256, 30
HEAVY_MIN_SECS = 0.05


# A step of next to nothing


def tiny_input_fn() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors(([1.0], [2.0])).repeat()


def tiny_model_fn(features: tf.Tensor, labels: tf.Tensor, mode: str) -> EstimatorSpec:
    weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
    loss = tf.reduce_mean(tf.square(features * weight - labels))
    optimizer = v1.train.GradientDescentOptimizer(1e-3)
    return EstimatorSpec(mode, loss=loss, train_op=optimizer.minimize(loss, v1.train.get_global_step()))


def tiny_step_of_train() -> float:
    """Milliseconds a step of `Estimator.train` on two workers."""
    with tempfile.TemporaryDirectory() as folder:
        estimator = Estimator(tiny_model_fn, f"{folder}/model", RunConfig(scaling_config=ScalingConfig(num_workers=2)))
        estimator.train(tiny_input_fn, steps=LAST, hooks=[StepTimer(folder, FIRST, LAST)])
        return 1e3 * seconds_per_step(folder)


def tiny_step_of_tf_function() -> float:
    """Milliseconds a step of the same strategy in a tf.function loop, in two plain processes with as many threads."""
    addresses = _free_addresses(2)
    script = Path(__file__).with_name("_tf_function_worker.py")
    workers = []
    for rank in range(2):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        workers.append(
            subprocess.Popen(
                [sys.executable, script, str(FIRST), str(LAST), "1"],
                env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    return 1e3 * max(float(worker.communicate(timeout=300)[0]) for worker in workers)


def _free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


# A step that computes


class OneCpu(v1.train.SessionRunHook):  # type: ignore[misc]
    """Holds every thread of a worker to the CPU of its rank: TensorFlow's pools do not count the work they share."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._steps_made = 0

    def after_create_session(self, session: Any, coord: Any) -> None:
        self._hold()

    def after_run(self, run_context: Any, run_values: Any) -> None:
        # The first steps start threads of their own.
        self._steps_made += 1
        if self._steps_made == HEAVY_FIRST // 2:
            self._hold()

    def _hold(self) -> None:
        cpus = sorted(os.sched_getaffinity(os.getppid()))
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {cpus[self._rank % len(cpus)]})


def heavy_input_fn() -> tf.data.Dataset:
    rows = tf.random.stateless_normal([HEAVY_ROWS, HEAVY_UNITS], seed=[1, 2])
    return tf.data.Dataset.from_tensors(rows).cache().repeat()


def heavy_model_fn(features: tf.Tensor, labels: None, mode: str, config: RunConfig) -> EstimatorSpec:
    """Many products with one small matrix: much to compute, little to reduce."""
    matrix = v1.get_variable("matrix", [HEAVY_UNITS, HEAVY_UNITS])
    values = features
    for _ in range(HEAVY_LAYERS):
        values = tf.tanh(tf.matmul(values, matrix))
    loss = tf.reduce_mean(tf.square(values))
    train_op = v1.train.GradientDescentOptimizer(1e-3).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op, training_hooks=[OneCpu(config.task_id)])


def heavy_rows_per_second(num_workers: int) -> float:
    """Rows a second, of all workers, with one CPU each."""
    with tempfile.TemporaryDirectory() as folder:
        scaling = ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1})
        estimator = Estimator(heavy_model_fn, f"{folder}/model", RunConfig(scaling_config=scaling))
        estimator.train(heavy_input_fn, steps=HEAVY_LAST, hooks=[StepTimer(folder, HEAVY_FIRST, HEAVY_LAST)])
        seconds = seconds_per_step(folder)
    print(f"{num_workers} workers: {1e3 * seconds:.0f} ms a step")
    if seconds < HEAVY_MIN_SECS:
        raise SystemExit(f"The step took {1e3 * seconds:.0f} ms; raise HEAVY_LAYERS until it takes 50 ms or more.")
    return HEAVY_ROWS * num_workers / seconds


def main() -> int:
    options = arguments(__doc__, rounds=3)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    tiny = alternated(options.rounds, tiny_step_of_train, tiny_step_of_tf_function)
    heavy = alternated(options.rounds, lambda: heavy_rows_per_second(2), lambda: heavy_rows_per_second(1))
    ray.shutdown()
    comparisons = [
        Comparison("a tiny step on 2 workers, against the same strategy in a tf.function loop", *tiny, "ms", 0.7),
        Comparison("2 workers against 1, one CPU each", *heavy, "rows/s", 1.7, at_least=True),
    ]
    return report(comparisons, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
