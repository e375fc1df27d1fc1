"""Two workers: a step against the same strategy in a tf.function, and the speed-up of two workers over one.

The first part runs a nearly empty step, which measures communication between the ranks; both sides train concurrently
and take turns. The second runs a compute-bound step, with each worker's threads pinned to one CPU. It alternates whole
runs: on 2 CPUs, a paused training would slow down two workers, but not one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_worker_niceness", "0")  # same priority as the peer's plain processes
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import ray
import tensorflow as tf
import tensorflow.compat.v1 as v1
from _side_by_side import Comparison, LapEveryBlock, Turn, alternate, arguments, report, seconds_of
from ray.train import ScalingConfig

from ray_estimator import Estimator, EstimatorSpec, RunConfig

OURS, PEER = 0, 1
WARM_UP = 3
TINY_BLOCK_STEPS = 100
HEAVY_RUNS, HEAVY_BLOCKS, HEAVY_BLOCK_STEPS = 3, 20, 5
HEAVY_ROWS, HEAVY_UNITS, HEAVY_LAYERS = 2048, 256, 24
HEAVY_MIN_SECS = 0.05


def trained(model_fn: Any, input_fn: Any, turn: Turn, block_steps: int, num_workers: int) -> None:
    """Train for every block of `turn`, after a first one that starts the workers."""
    with tempfile.TemporaryDirectory() as model_dir:
        config = RunConfig(scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}))
        estimator = Estimator(model_fn, model_dir, config, params={"turn": turn, "block_steps": block_steps})
        estimator.train(input_fn, steps=block_steps * (1 + turn.rounds))


def lap_hook(params: dict[str, Any], config: RunConfig) -> LapEveryBlock:
    turn: Turn = params["turn"]
    turn.leads = config.is_chief
    return LapEveryBlock(turn, params["block_steps"])


# A nearly empty step


def tiny_input_fn() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors(([1.0], [2.0])).repeat()


def tiny_model_fn(
    features: tf.Tensor, labels: tf.Tensor, mode: str, params: dict[str, Any], config: RunConfig
) -> EstimatorSpec:
    weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
    loss = tf.reduce_mean(tf.square(features * weight - labels))
    train_op = v1.train.GradientDescentOptimizer(1e-3).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op, training_hooks=[lap_hook(params, config)])


@contextlib.contextmanager
def tf_function_pair(turn: Turn) -> Iterator[None]:
    """Run two plain processes with the same step in a tf.function, for every block of `turn`."""
    script = Path(__file__).with_name("_tf_function_worker.py")
    numbers = (turn.place, turn.programs, turn.rounds, TINY_BLOCK_STEPS)
    command = [sys.executable, str(script), turn.folder, *map(str, numbers)]
    addresses = _free_addresses(2)
    workers = []
    for rank in range(2):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        workers.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": json.dumps(cluster)}))
    try:
        yield
        for worker in workers:
            worker.wait(timeout=60)
    finally:
        for worker in workers:
            worker.kill()


def _free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def compare_tiny_steps(rounds: int) -> Comparison:
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = (Turn(folder, place, 2, WARM_UP + rounds) for place in (OURS, PEER))
        with tf_function_pair(peer):
            trained(tiny_model_fn, tiny_input_fn, ours, TINY_BLOCK_STEPS, num_workers=2)
        ours_ms, peer_ms = (
            [1e3 * each / TINY_BLOCK_STEPS for each in seconds_of(folder, place, warm_up=WARM_UP)]
            for place in (OURS, PEER)
        )
    what = "a tiny step on 2 workers, against the same strategy in a tf.function loop"
    return Comparison(what, ours_ms, peer_ms, unit="ms", goal=0.7)


# A compute-bound step


class PinToOneCpu(v1.train.SessionRunHook):
    """Pins all threads of a worker to the CPU of its rank, because TensorFlow's thread pools can use more than one."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._steps_made = 0

    def after_create_session(self, session: Any, coord: Any) -> None:
        self._pin()

    def after_run(self, run_context: Any, run_values: Any) -> None:
        # The first step starts more threads.
        self._steps_made += 1
        if self._steps_made == 1:
            self._pin()

    def _pin(self) -> None:
        cpus = sorted(os.sched_getaffinity(os.getppid()))
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # thread has ended
                os.sched_setaffinity(int(thread), {cpus[self._rank % len(cpus)]})


def heavy_input_fn() -> tf.data.Dataset:
    rows = tf.random.stateless_normal([HEAVY_ROWS, HEAVY_UNITS], seed=[1, 2])
    return tf.data.Dataset.from_tensors(rows).cache().repeat()


def heavy_model_fn(features: tf.Tensor, mode: str, params: dict[str, Any], config: RunConfig) -> EstimatorSpec:
    """Multiply with one small matrix many times: much computation, little to reduce."""
    matrix = v1.get_variable("matrix", [HEAVY_UNITS, HEAVY_UNITS])
    values = features
    for _ in range(HEAVY_LAYERS):
        values = tf.tanh(tf.matmul(values, matrix))
    loss = tf.reduce_mean(tf.square(values))
    train_op = v1.train.GradientDescentOptimizer(1e-3).minimize(loss, v1.train.get_global_step())
    hooks = [PinToOneCpu(config.task_id), lap_hook(params, config)]
    return EstimatorSpec(mode, loss=loss, train_op=train_op, training_hooks=hooks)


def secs_of_heavy_step(num_workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        alone = Turn(folder, 0, 1, WARM_UP + HEAVY_BLOCKS)
        trained(heavy_model_fn, heavy_input_fn, alone, HEAVY_BLOCK_STEPS, num_workers)
        secs = statistics.median(seconds_of(folder, 0, warm_up=WARM_UP)) / HEAVY_BLOCK_STEPS
    if secs < HEAVY_MIN_SECS:
        raise SystemExit(f"A step took {1e3 * secs:.0f} ms; raise HEAVY_LAYERS until it takes 50 ms or more.")
    return secs


def compare_two_with_one() -> Comparison:
    two, one = [], []
    programs = (lambda: two.append(secs_of_heavy_step(2)), lambda: one.append(secs_of_heavy_step(1)))
    alternate(HEAVY_RUNS, *programs)
    what = "2 workers against 1, one CPU each, same batch for each"
    ours, peer = [2 * HEAVY_ROWS / each for each in two], [HEAVY_ROWS / each for each in one]
    return Comparison(what, ours, peer, unit="rows/s", goal=1.7, at_least=True)


def main() -> int:
    options = arguments(__doc__, rounds=30)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    comparisons = [compare_tiny_steps(options.rounds), compare_two_with_one()]
    ray.shutdown()
    return report(comparisons, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
