"""Private names of tf.data: iterator state."""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf


def resource_of(iterator: Any) -> tf.Tensor:
    """The handle of an initializable iterator."""
    return iterator._iterator_resource


def fingerprint_of(dataset: tf.data.Dataset) -> tf.Tensor:
    """uint64 scalar that tells a pipeline, with the constants in it, from another one; the same in each process.

    It takes a second for about 30 MB of constants.
    """
    return tf.raw_ops.DatasetFingerprint(input_dataset=dataset._variant_tensor)


def save_state(iterator: tf.Tensor, prefix: tf.Tensor) -> tf.Operation:
    """Writes where an iterator is as a checkpoint. Running it fails for pipelines that have state elsewhere."""
    fail = 2  # EXTERNAL_STATE_POLICY: IGNORE is 1, WARN 0
    # Into a file and not a string, in which TensorFlow dies of more than 2 GiB.
    state = tf.raw_ops.SerializeIterator(resource_handle=iterator, external_state_policy=fail)
    return tf.raw_ops.SaveV2(prefix=prefix, tensor_names=["iterator"], shape_and_slices=[""], tensors=[state])


def restore_state(iterator: tf.Tensor, prefix: tf.Tensor) -> tf.Operation:
    """Puts an iterator that is initialised where `save_state` found it."""
    state = tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=["iterator"], shape_and_slices=[""], dtypes=[tf.variant])
    return tf.raw_ops.DeserializeIterator(resource_handle=iterator, serialized=state[0])


def text_of(error: tf.errors.OpError) -> str:
    """What a kernel says, without the traceback and the graph around it."""
    message = re.sub(r"(?s)^Graph execution error:.*\nNode: [^\n]*\n", "", error.message)
    return re.sub(r"\n?\t? \[\[.*", "", message).strip()
