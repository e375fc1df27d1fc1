"""Replicas and processes for the tests of what the engine leans on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tensorflow as tf

v1 = tf.compat.v1


def two_replicas_here() -> tf.distribute.Strategy:
    """Two replicas on two CPUs of this process; `session()` has both."""
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


def session() -> v1.Session:
    """A session with two CPUs, over the default graph, its variables initialised."""
    opened = v1.Session(config=v1.ConfigProto(device_count={"CPU": 2}))
    opened.run([v1.global_variables_initializer(), v1.local_variables_initializer()])
    return opened


def in_a_process(what: str) -> None:
    """Runs a part of `engine/tf_private_script.py`, which needs a process of its own."""
    script = Path(__file__).parents[1] / "engine" / "tf_private_script.py"
    environment = {**os.environ, "TF_CONFIG": ""}
    ended = subprocess.run([sys.executable, script, what], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-4000:]
