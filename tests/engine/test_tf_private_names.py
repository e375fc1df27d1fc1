"""Private names of TensorFlow's API."""

from __future__ import annotations

from tensorflow.python.ops import array_ops
from tensorflow.python.training import training_util

from ray_estimator._tf_private import names


def test_public_name_of_v1_symbols_other_symbols_and_private_symbols() -> None:
    assert names.public_name_of(array_ops.placeholder) == "compat.v1.placeholder"
    assert names.public_name_of(array_ops.reshape) == "reshape"
    assert names.public_name_of(training_util._get_or_create_global_step_read) is None
