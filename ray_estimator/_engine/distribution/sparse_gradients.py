"""Sum sparse gradients, such as those of embeddings, over the workers for any number of rows.

A collective keeps its shape for the whole session; TensorFlow fails if a later step has another shape. Rows are
therefore padded to one of `NUM_SIZES` sizes, with one collective per size.
"""

from __future__ import annotations

import tensorflow as tf

from ray_estimator._tf_private.distribute import Gather

NUM_SIZES = 256
"""Number of padded sizes, up to 2**31 rows."""

_SIZES_PER_DOUBLING = 8


def summed(slices: tf.IndexedSlices, gather: Gather) -> tf.IndexedSlices:
    """Return the slices of all workers, concatenated."""
    rows = gather(tf.shape(slices.indices), None)
    size, number = size_for(tf.reduce_max(rows))
    filled = tf.reshape(tf.sequence_mask(rows, size), [-1])

    def gathered(tensor: tf.Tensor) -> tf.Tensor:
        missing = tf.scatter_nd([[0, 1]], [size - tf.shape(tensor)[0]], [tf.rank(tensor), 2])
        return tf.boolean_mask(gather(tf.pad(tensor, missing), number), filled)

    return tf.IndexedSlices(gathered(slices.values), gathered(slices.indices), slices.dense_shape)


def size_for(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the smallest size that holds `rows`, at most 1/8 larger, and the number of that size."""
    rows = tf.maximum(rows, 1)
    doublings = tf.cast(tf.math.log(tf.cast(rows, tf.float64)) / tf.math.log(tf.constant(2.0, tf.float64)), tf.int32)
    exponent = tf.maximum(doublings - 3, 0)  # 8 to 16 units of 2**exponent, or single rows below 8
    unit = tf.bitwise.left_shift(1, exponent)
    units = (rows + unit - 1) // unit
    return units * unit, _SIZES_PER_DOUBLING * exponent + units
