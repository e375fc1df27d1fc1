"""Replicas and processes for the tests of what the engine leans on."""

from __future__ import annotations

import os

import tensorflow as tf

from support.two_processes import results_of

v1 = tf.compat.v1


def two_replicas_here() -> tf.distribute.Strategy:
    """Two replicas on two CPUs of this process; `session()` has both."""
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


def session() -> v1.Session:
    """A session with two CPUs, over the default graph, its variables initialised."""
    opened = v1.Session(config=v1.ConfigProto(device_count={"CPU": 2}))
    opened.run([v1.global_variables_initializer(), v1.local_variables_initializer()])
    return opened


def in_a_process(part: str) -> None:
    """Run a part of `engine/tf_private_script.py` in a fork that has made no session yet."""
    results_of([(_run_part, part)])


def _run_part(part: str) -> None:
    import tf_private_script

    os.environ["TF_CONFIG"] = ""
    getattr(tf_private_script, part)()
