"""Private names of TensorFlow's v2 switches."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1


def tensor_shapes_are_v2() -> bool:
    """Return whether `v1.enable_v2_tensorshape` is in effect."""
    return bool(v1.TensorShape(None)._v2_behavior)


def tensor_equality_is_enabled() -> bool:
    """Return whether `v1.enable_tensor_equality` is in effect."""
    return bool(tf.Tensor._USE_EQUALITY)


def replay_v2_switches(switches: Any) -> None:
    """Turn off the v2 behaviours in this process that the driver's script turned off.

    Call after the strategy is created.

    Args:
        switches: The `V2Switches` of the driver, or None.
    """
    if switches is None:
        return
    if switches.resource_variables is False:
        v1.disable_resource_variables()
    if switches.control_flow is False:
        v1.disable_control_flow_v2()
    if switches.tensor_shape is False:
        v1.disable_v2_tensorshape()
    if switches.tensor_equality is False:
        v1.disable_tensor_equality()
