"""Checks that need a separate process.

`group` joins a strategy with a single worker at a free port.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import tensorflow as tf

from ray_estimator._engine import entrypoints
from ray_estimator._jobs.serialization import V2Switches
from ray_estimator._tf_private import distribute, graphs
from ray_estimator._tf_private import switches as v2_switches

v1 = tf.compat.v1


def switches() -> None:
    v2_switches.replay_v2_switches(None)
    on = V2Switches.of_this_process()
    assert on == V2Switches(True, True, True, True), on
    v2_switches.replay_v2_switches(on)
    assert V2Switches.of_this_process() == on

    off = V2Switches(False, False, False, False)
    v2_switches.replay_v2_switches(off)
    assert V2Switches.of_this_process() == off
    # Without eager execution, a strategy that exists already would hang.
    assert tf.executing_eagerly()


def group() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": [address]}, "task": {"type": "worker", "index": 0}})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    given = v1.ConfigProto(log_device_placement=True)
    config = distribute.session_config(strategy, given)
    assert config.experimental.collective_group_leader == "/job:worker/replica:0/task:0"
    assert list(config.device_filters) == ["/job:worker/task:0"]
    assert config.log_device_placement
    assert not given.device_filters

    with tf.Graph().as_default(), strategy.scope():
        distribute.read_global_step_locally(strategy, v1.train.create_global_step())
        (read,) = v1.get_collection("global_step_read_op_cache")
        hook = v1.train.StopAtStepHook(last_step=3)
        operations = len(v1.get_default_graph().get_operations())
        hook.begin()
        assert len(v1.get_default_graph().get_operations()) == operations
        with v1.Session(f"grpc://{address}", config=config) as session:
            session.run(v1.global_variables_initializer())
            assert session.run(read) == 0


def threads() -> None:
    """Check the numbers of inter-op and intra-op threads in the first session of a task with 70.5 CPUs."""
    entrypoints.import_engine(num_cpus=70.5)
    with tf.Graph().as_default(), v1.Session() as session:
        matrix = tf.random.normal([500, 500])
        session.run(tf.matmul(matrix, matrix))
    names = [thread.read_text().strip() for thread in Path("/proc/self/task").glob("*/comm")]
    assert names.count("tf_Compute") == 71, names
    assert 71 <= len(names) - 71 < 71 + 16, names


def determinism() -> None:
    """Check `ops_are_deterministic` before and after determinism is enabled."""
    assert not graphs.ops_are_deterministic()
    tf.config.experimental.enable_op_determinism()
    assert graphs.ops_are_deterministic()
