"""Sums the gradients of embeddings over the workers, however many rows each worker has in a step.

A collective of a session has one shape: TensorFlow refuses another one in a later step. Rows are therefore padded to
one of a few sizes, and each size is a collective of its own.
"""

from __future__ import annotations

import tensorflow as tf

from ray_estimator._engine.tf_private.strategy import Gather

NUM_SIZES = 256
"""How many sizes there are, up to 2**31 rows."""

_PER_DOUBLING = 8


def summed(slices: tf.IndexedSlices, gather: Gather) -> tf.IndexedSlices:
    """The slices of all workers, one after the other."""
    rows = gather(tf.shape(slices.indices), None)
    size, number = size_for(tf.reduce_max(rows))
    filled = tf.reshape(tf.sequence_mask(rows, size), [-1])

    def gathered(tensor: tf.Tensor) -> tf.Tensor:
        missing = tf.scatter_nd([[0, 1]], [size - tf.shape(tensor)[0]], [tf.rank(tensor), 2])
        return tf.boolean_mask(gather(tf.pad(tensor, missing), number), filled)

    return tf.IndexedSlices(gathered(slices.values), gathered(slices.indices), slices.dense_shape)


def size_for(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The least size that `rows` fit in, at most an eighth larger, and its number below `NUM_SIZES`."""
    rows = tf.maximum(rows, 1)
    doublings = tf.cast(tf.math.log(tf.cast(rows, tf.float64)) / tf.math.log(tf.constant(2.0, tf.float64)), tf.int32)
    exponent = tf.maximum(doublings - 3, 0)  # 8 to 16 units of 2**exponent; below that, one row is a unit
    unit = tf.bitwise.left_shift(1, exponent)
    units = (rows + unit - 1) // unit
    return units * unit, _PER_DOUBLING * exponent + units
