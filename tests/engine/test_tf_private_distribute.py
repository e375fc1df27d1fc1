"""Private names of tf.distribute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tensorflow as tf
from support.processes import in_a_process, session, two_replicas_here
from tensorflow.python.distribute import cross_device_utils

from ray_estimator._engine.distribution.collectives import collectives_of
from ray_estimator._engine.graph.traversal import ancestors
from ray_estimator._tf_private import distribute

v1 = tf.compat.v1


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    """A new graph for each test."""
    with tf.Graph().as_default() as graph:
        yield graph


@pytest.fixture
def two_replicas() -> tf.distribute.Strategy:
    return two_replicas_here()


def test_averaging_v1_gradients_makes_v1_optimizers_average(two_replicas: tf.distribute.Strategy) -> None:
    with two_replicas.scope():
        weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())

    def minimized() -> float:
        def replica() -> tf.Operation:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            return v1.train.GradientDescentOptimizer(1.0).minimize(weight * (tf.cast(number, tf.float32) + 1.0))

        train_op = two_replicas.group(two_replicas.extended.call_for_each_replica(replica))
        with session() as opened:
            opened.run(train_op)
            return float(opened.run(two_replicas.extended.read_var(weight)))

    with two_replicas.scope():
        assert minimized() == -3.0  # the sum, which is the default
        with distribute.averaging_v1_gradients(two_replicas):
            assert minimized() == -1.5


def launcher_of_two() -> cross_device_utils.CollectiveReplicaLauncher:
    keys, device = cross_device_utils.CollectiveKeys(), "/device:CPU:0"
    group, options = keys.get_group_key([device]), tf.distribute.experimental.CommunicationOptions()
    return cross_device_utils.CollectiveReplicaLauncher(group, 2, keys, device, options)


def test_all_reduce_slots_add_a_vector_to_an_all_reduce() -> None:
    launcher = launcher_of_two()
    gradients = [tf.ones([3]), tf.ones([2, 2])]
    with distribute.adding_all_reduce_slots(4) as slots:
        reduced = launcher.batch_all_reduce([gradients, [tf.ones([5])]])
        launcher.batch_all_reduce([[tf.ones([3], tf.float64)]])
        with tf.Graph().as_default():
            launcher.batch_all_reduce([[tf.ones([3])]])
    assert [tensor.shape for tensor in reduced] == [[3], [2, 2], [5]]
    (slot,) = slots

    vector = tf.constant([1.0, 2.0, 3.0, 4.0])
    assert slot.fill(vector) is slot.total
    assert collectives_of([slot.total.op]) == collectives_of([reduced[0].op])
    assert vector.op in ancestors([reduced[0].op])

    launcher.batch_all_reduce([gradients])
    assert len(slots) == 1


def test_packs_of_one_dtype_allow_gradients_of_several_dtypes() -> None:
    launcher = launcher_of_two()
    packs = [[tf.ones([1]), tf.ones([2], tf.float64), tf.ones([3])], [tf.ones([4], tf.float64)]]
    with pytest.raises(TypeError, match="don't all match"):
        launcher.batch_all_reduce(packs)
    with distribute.packs_of_one_dtype():
        reduced = launcher.batch_all_reduce(packs)
        launcher.batch_all_reduce([])
    assert [(tensor.dtype, tensor.shape) for tensor in reduced] == [
        (tf.float32, [1]),
        (tf.float64, [2]),
        (tf.float32, [3]),
        (tf.float64, [4]),
    ]
    assert collectives_of([reduced[0].op]) == collectives_of([reduced[2].op])
    with pytest.raises(TypeError, match="don't all match"):
        launcher.batch_all_reduce(packs)


def test_reducing_slices_uses_one_key_per_size() -> None:
    """The sums are tested in test_sparse_gradients."""
    launcher = launcher_of_two()
    size = v1.placeholder(tf.int32, [])

    def reduce(slices: tf.IndexedSlices, gather: distribute.Gather) -> tf.IndexedSlices:
        return tf.IndexedSlices(gather(slices.values, size), gather(slices.indices, None), slices.dense_shape)

    slices = tf.IndexedSlices(tf.ones([2]), tf.constant([0, 1]), tf.constant([3]))
    with distribute.reducing_slices(reduce, num_sizes=5):
        reduced = launcher.all_reduce_indexed_slices(slices)
    (of_values,), (of_indices,) = (collectives_of([part.op]) for part in (reduced.values, reduced.indices))
    with session() as opened:
        first, last, other = (
            int(opened.run(key, {size: number}))
            for key, number in ((of_values.inputs[3], 0), (of_values.inputs[3], 4), (of_indices.inputs[3], 0))
        )
    assert (last - first, other - first) == (4, 5)
    assert "cond" in launcher.all_reduce_indexed_slices(slices).values.name


def test_averaging_assigned_values(two_replicas: tf.distribute.Strategy) -> None:
    with two_replicas.scope():
        plain, averaged = (v1.get_variable(name, [], initializer=v1.zeros_initializer()) for name in ("a", "b"))

        def replica() -> tf.Operation:
            number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
            return tf.group(v1.assign_add(plain, number), v1.assign(averaged, 4.0 * number))

        with distribute.averaging_assigned_values(lambda variable, value: variable.name.startswith("b")):
            run = two_replicas.group(two_replicas.extended.call_for_each_replica(replica))
    with session() as opened:
        opened.run(run)
        assert opened.run([*plain.values]) == [0.0, 1.0]
        assert opened.run([*averaged.values]) == [2.0, 2.0]


def test_single_process_names_keep_the_names_of_optimizer_variables(two_replicas: tf.distribute.Strategy) -> None:
    def replica() -> tf.Operation:
        with v1.variable_scope("outer"):
            return v1.train.AdamOptimizer().minimize(v1.get_variable("weight", []))

    def names() -> list[str]:
        return sorted(variable.name for variable in v1.global_variables())

    with tf.Graph().as_default():
        replica()
        expected = names()
    with two_replicas.scope(), tf.Graph().as_default(), distribute.single_process_names():
        two_replicas.extended.call_for_each_replica(replica)
        assert names() == expected
    with two_replicas.scope(), tf.Graph().as_default():
        two_replicas.extended.call_for_each_replica(replica)
        assert "outer/outer/beta1_power:0" in names()


def test_session_config_and_local_read_of_the_global_step_of_a_worker() -> None:
    """`session_config` and `read_global_step_locally` of a MultiWorkerMirroredStrategy."""
    in_a_process("group")


def test_read_global_step_locally_reads_without_communication(two_replicas: tf.distribute.Strategy) -> None:
    with two_replicas.scope():
        step = v1.train.create_global_step()
        distribute.read_global_step_locally(two_replicas, step)
    (read,) = v1.get_collection(v1.GraphKeys.GLOBAL_STEP + "_read_op_cache")
    with session() as opened:
        opened.run([copy.assign(5) for copy in step.values])
        assert opened.run(read) == 5
