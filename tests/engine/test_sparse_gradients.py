"""Sparse gradients with any number of rows are summed over workers in one session."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute import cross_device_utils

from ray_estimator._engine.distribution.collectives import collectives_of
from ray_estimator._engine.distribution.sparse_gradients import NUM_SIZES, size_for, summed
from ray_estimator._tf_private import distribute

v1 = tf.compat.v1

ROWS = [*range(300), *(2**power + offset for power in range(9, 31) for offset in (-1, 0, 1)), 2**31 - 1 - 2**27]


@pytest.fixture
def graph() -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as graph:
        yield graph


def test_padded_sizes_are_at_most_an_eighth_larger() -> None:
    sizes, numbers = (part.numpy() for part in size_for(tf.constant(ROWS, tf.int32)))

    assert all(rows <= size <= max(1, rows * 9 / 8) for rows, size in zip(ROWS, sizes, strict=True))
    assert numbers.min() >= 0
    assert numbers.max() < NUM_SIZES
    assert len(set(zip(sizes, numbers, strict=True))) == len(set(sizes)) == len(set(numbers))


@pytest.mark.parametrize("width", [(), (2,), (2, 3)])
def test_slices_of_two_workers_can_have_any_length_in_every_step(graph: tf.Graph, width: tuple[int, ...]) -> None:
    keys = cross_device_utils.CollectiveKeys()
    devices = ["/device:CPU:0", "/device:CPU:1"]
    group, options = keys.get_group_key(devices), tf.distribute.experimental.CommunicationOptions()
    inputs, outputs = [], []
    with distribute.reducing_slices(summed, NUM_SIZES):
        for device in devices:
            with tf.device(device):
                values = v1.placeholder(tf.float32, [None, *width])
                indices = v1.placeholder(tf.int64, [None])
                inputs.append((values, indices))
                launcher = cross_device_utils.CollectiveReplicaLauncher(group, 2, keys, device, options)
                slices = tf.IndexedSlices(values, indices, tf.constant([9, *width]))
                outputs.append(launcher.all_reduce_indexed_slices(slices))
    fetches = [(output.values, output.indices) for output in outputs]
    of_one_worker = collectives_of([fetches[0][0].op, fetches[0][1].op])
    assert [op.type for op in of_one_worker] == ["CollectiveGatherV2"] * 3
    rng = np.random.default_rng(0)
    config = v1.ConfigProto(device_count={"CPU": 2})
    run_options = v1.RunOptions(experimental=v1.RunOptions.Experimental(collective_graph_key=1))
    with v1.Session(config=config) as session:
        for lengths in [(3, 3), (2, 5), (40, 1), (0, 2), (0, 0), (3, 3), (100, 101)]:
            per_worker = [(rng.normal(size=(n, *width)).astype("f"), rng.integers(0, 9, n)) for n in lengths]
            feed = {
                placeholder: array
                for pair, arrays in zip(inputs, per_worker, strict=True)
                for placeholder, array in zip(pair, arrays, strict=True)
            }
            for values, indices in session.run(fetches, feed, options=run_options):
                np.testing.assert_array_equal(values, np.concatenate([arrays[0] for arrays in per_worker]))
                np.testing.assert_array_equal(indices, np.concatenate([arrays[1] for arrays in per_worker]))
