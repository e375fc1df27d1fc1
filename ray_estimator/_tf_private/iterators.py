"""Private names of tf.data: iterator state."""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf


def resource_of(iterator: Any) -> tf.Tensor:
    """Return the handle of an initializable iterator."""
    return iterator._iterator_resource


def fingerprint_of(dataset: tf.data.Dataset) -> tf.Tensor:
    """Return a uint64 scalar that identifies a pipeline and its constants, and is the same in every process.

    Computing it takes about a second per 30 MB of constants.
    """
    return tf.raw_ops.DatasetFingerprint(input_dataset=dataset._variant_tensor)


def save_state(iterator: tf.Tensor, prefix: tf.Tensor) -> tf.Operation:
    """Return an operation that saves the position of an iterator. It fails for pipelines with external state."""
    fail = 2  # EXTERNAL_STATE_POLICY: IGNORE is 1, WARN 0
    # To a file rather than a string: TensorFlow crashes on strings of more than 2 GiB.
    state = tf.raw_ops.SerializeIterator(resource_handle=iterator, external_state_policy=fail)
    return tf.raw_ops.SaveV2(prefix=prefix, tensor_names=["iterator"], shape_and_slices=[""], tensors=[state])


def restore_state(iterator: tf.Tensor, prefix: tf.Tensor) -> tf.Operation:
    """Return an operation that moves an initialized iterator to the position that `save_state` saved."""
    state = tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=["iterator"], shape_and_slices=[""], dtypes=[tf.variant])
    return tf.raw_ops.DeserializeIterator(resource_handle=iterator, serialized=state[0])


def kernel_message(error: tf.errors.OpError) -> str:
    """Return the message of the failed kernel, without the graph traceback that TensorFlow adds."""
    message = re.sub(r"(?s)^Graph execution error:.*\nNode: [^\n]*\n", "", error.message)
    return re.sub(r"\n?\t? \[\[.*", "", message).strip()
