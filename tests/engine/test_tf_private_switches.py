"""Private names of TensorFlow's v2 switches. Switches that are off are tested in a separate process."""

from __future__ import annotations

from support.processes import in_a_process

from ray_estimator._tf_private import switches


def test_switches_are_on_by_default() -> None:
    assert switches.tensor_shapes_are_v2()
    assert switches.tensor_equality_is_enabled()


def test_replay_v2_switches_turns_off_behaviours() -> None:
    in_a_process("switches")
