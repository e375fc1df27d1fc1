"""What operations read, write and remember."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf

from ray_estimator import spec
from ray_estimator._engine.graph import operations
from ray_estimator._engine.graph.traversal import ancestors, data_ancestors, descendants

v1 = tf.compat.v1


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    """A new graph for each test."""
    with tf.Graph().as_default() as graph:
        yield graph


def variable(*shape: int, use_resource: bool = True) -> tf.Variable:
    return v1.get_variable("variable", shape, initializer=v1.zeros_initializer(), use_resource=use_resource)


def test_spec_knows_the_same_reads() -> None:
    assert spec.READS == operations.READS


@pytest.mark.parametrize("use_resource", [True, False], ids=["resource", "reference"])
@pytest.mark.parametrize(
    "write",
    [
        lambda target: v1.assign(target, tf.ones([3])),
        lambda target: v1.assign_add(target, tf.ones([3])),
        lambda target: v1.scatter_update(target, [1], [1.0]),
        lambda target: v1.train.MomentumOptimizer(0.1, 0.9).apply_gradients([(tf.ones([3]), target)]),
    ],
    ids=["assign", "add", "scatter", "optimizer"],
)
def test_written_by_returns_the_written_variable(use_resource: bool, write: Callable[..., tf.Tensor]) -> None:
    target = variable(3, use_resource=use_resource)
    written = write(target)
    run = ancestors([getattr(written, "op", written)])
    names = {tensor.name for op in run for tensor in operations.written_by(op)}
    assert names == {operations.variable_input_name(target)}


def test_reads_write_nothing() -> None:
    target = variable(3)
    value = tf.gather(target, [1]) + target.read_value()[:1] + v1.scatter_nd([[0]], [1.0], [1])
    run = ancestors([value.op])
    assert not [op for op in run if operations.written_by(op)]
    readers = [op for op in run if any(tensor.dtype == tf.resource for tensor in op.inputs)]
    assert readers
    assert all(operations.only_reads(op) for op in readers)


def test_assigns_to_input_includes_branches(graph: tf.Graph) -> None:
    step = v1.train.create_global_step()
    chosen = v1.placeholder(tf.bool, [])

    def count() -> tf.Tensor:
        return tf.identity(v1.assign_add(step, 1))

    def read() -> tf.Tensor:
        return tf.identity(step)

    tf.cond(chosen, count, read, name="counts")
    tf.cond(chosen, read, lambda: read() + 1, name="reads")
    tf.cond(chosen, lambda: tf.cond(chosen, count, read), read, name="counts_within")

    def writes(name: str) -> bool:
        op = graph.get_operation_by_name(name)
        number = [tensor.name for tensor in op.inputs].index(step.handle.name)
        return operations.assigns_to_input(op, number)

    assert writes("counts")
    assert writes("counts_within")
    assert not writes("reads")


def test_inputs_are_recognized() -> None:
    row = v1.data.make_one_shot_iterator(tf.data.Dataset.range(3)).get_next()
    queued = v1.FIFOQueue(1, tf.float32, shapes=[[]]).dequeue()
    fed = v1.placeholder(tf.float32, [])
    assert [operations.takes_batch(tensor.op) for tensor in (row, queued, fed)] == [True, True, False]
    assert all(operations.differs_by_batch(tensor.op) for tensor in (row, queued, fed))
    assert not operations.differs_by_batch(tf.constant(1.0).op)


def test_python_functions_and_tables_may_remember() -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)
    stateful = tf.numpy_function(np.negative, [1.0], tf.float32)
    stateless = tf.numpy_function(np.negative, [1.0], tf.float32, stateful=False)
    found = table.lookup(tf.constant([1], tf.int64))

    def may_remember(tensor: tf.Tensor) -> bool:
        return any(operations.may_remember(op) for op in ancestors([tensor.op]))

    assert [may_remember(tensor) for tensor in (stateful, found, stateless)] == [True, True, False]


def test_copies_lead_to_their_source() -> None:
    target = variable()
    source = tf.constant(1.0)
    assert operations.copied_from(tf.ensure_shape(tf.identity(source), [])) is source
    assert operations.variable_read(tf.identity(target.read_value())) is target.handle
    assert operations.variable_read(source + 1.0).op.type == "AddV2"


def test_data_ancestors_ignore_control_edges_and_descendants_follow_them() -> None:
    start, other = tf.constant(1.0), tf.constant(2.0)
    with tf.control_dependencies([start]):
        waiting = tf.identity(other)
    last = waiting + 1.0
    run = ancestors([last.op])
    assert start.op in run
    assert data_ancestors([last]) == {last.op, last.op.inputs[1].op, waiting.op, other.op}
    assert descendants([start.op], run) == {waiting.op, last.op}
    assert descendants([last.op], run) == set()
