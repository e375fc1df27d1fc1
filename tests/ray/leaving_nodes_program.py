"""Trains while its nodes go: one after a notice, the next one without, at last the driver's own after a notice.

`leaving_nodes_program.py FOLDER` prints as JSON, for each node where rank 0 made steps, which; how training ended; and
the newest checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"
# `ray start` leaves its address there, for every Ray of this machine that looks at the same folder.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")

import ray
import tensorflow as tf
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.train import FailureConfig, ScalingConfig
from support.models import endless_input_fn, linear_model_fn
from support.probes import note, notes

from ray_estimator import Estimator, RunConfig

v1 = tf.compat.v1
WAIT_SECS = 90.0
PREEMPTION = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
folder = sys.argv[1]


class NoteSteps(v1.train.SessionRunHook):
    """Notes each step and the node it is made on. There is time for what happens to nodes meanwhile."""

    def after_run(self, run_context: Any, run_values: Any) -> None:
        step = int(run_context.session.run(v1.train.get_global_step()))
        note(folder, "steps", [step, ray.get_runtime_context().get_node_id()])
        time.sleep(0.02)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECS
    while not condition():
        assert not training.done(), f"Training has ended: {training.exception()!r}"
        assert time.monotonic() < deadline, "Waited in vain."
        time.sleep(0.05)


def made_on(node: Any) -> list[int]:
    """The steps that rank 0 has made on a node."""
    return [step for step, where in notes(folder, "steps").get(0, []) if where == node.node_id]


def give_notice(node: Any) -> None:
    """As a cloud does that takes a node back."""
    deadline_ms = int((time.time() + 60) * 1000)
    accepted, reason = GcsClient(address=cluster.address).drain_node(node.node_id, PREEMPTION, "", deadline_ms)
    assert accepted, reason


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
first = cluster.add_node(num_cpus=2)
ray.init(cluster.address, log_to_driver=False)
try:
    config = RunConfig(
        save_checkpoints_steps=50,
        scaling_config=ScalingConfig(num_workers=2),
        failure_config=FailureConfig(max_failures=1),
    )
    estimator = Estimator(linear_model_fn, f"{folder}/model", config, params={})
    run = partial(estimator.train, endless_input_fn, hooks=[NoteSteps], max_steps=10**6)
    training = ThreadPoolExecutor().submit(run)
    second = cluster.add_node(num_cpus=2)  # Signals of nodes can be set up in the main thread alone.
    wait_until(lambda: len(made_on(first)) + len(made_on(second)) > 10)
    if not made_on(first):
        first, second = second, first
    give_notice(first)
    wait_until(lambda: len(made_on(second)) > 60)
    cluster.remove_node(second)
    third = cluster.add_node(num_cpus=2)
    wait_until(lambda: len(made_on(third)) > 60)
    give_notice(cluster.head_node)
    ended = training.exception(WAIT_SECS)
    print(json.dumps([*map(made_on, [first, second, third]), repr(ended), estimator.latest_checkpoint()]))
finally:
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(os.environ["RAY_TMPDIR"])
