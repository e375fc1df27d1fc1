"""What TensorFlow can compute on, in this process."""

from __future__ import annotations

import tensorflow as tf


def visible_gpus() -> int:
    """How many GPUs TensorFlow sees. Takes no memory on them."""
    return len(tf.config.list_physical_devices("GPU"))
