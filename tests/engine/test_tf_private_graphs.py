"""Private names of TensorFlow's graphs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from support.processes import in_a_process, session, two_replicas_here

from ray_estimator._tf_private import distribute, graphs

v1 = tf.compat.v1


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    """A new graph for each test."""
    with tf.Graph().as_default() as graph:
        yield graph


@pytest.fixture
def two_replicas() -> tf.distribute.Strategy:
    return two_replicas_here()


def test_run_after_orders_existing_operations() -> None:
    counter = v1.get_variable("counter", [], initializer=v1.zeros_initializer())
    read = counter.read_value()
    read_op = read.op.inputs[0].op  # `read` is only an identity of what is read
    write = counter.assign_add(1.0, read_value=False)
    graphs.run_after(read_op, [write, read_op])
    assert list(read_op.control_inputs) == [write]
    with session() as opened:
        assert [opened.run(read) for _ in range(3)] == [1.0, 2.0, 3.0]


def test_in_v1_control_flow_recognizes_loops_and_branches() -> None:
    enabled = v1.control_flow_v2_enabled()
    inside: list[tf.Operation] = []

    def branch() -> tf.Tensor:
        inside.append(tf.add(1.0, 2.0).op)
        return inside[0].outputs[0]

    def body(step: tf.Tensor) -> tf.Tensor:
        inside.append(tf.add(step, 1).op)
        return inside[-1].outputs[0]

    try:
        v1.disable_control_flow_v2()
        v1.cond(v1.placeholder_with_default(True, []), branch, lambda: tf.constant(0.0))
        v1.while_loop(lambda step: step < 3, body, [tf.constant(0)])
    finally:
        if enabled:
            v1.enable_control_flow_v2()
    assert [graphs.in_v1_control_flow(op) for op in inside] == [True, True]
    assert not graphs.in_v1_control_flow(tf.add(1.0, 2.0).op)


def test_keep_shape_makes_an_assignment_of_another_shape_fail() -> None:
    variable = v1.get_variable("variable", initializer=np.zeros(2, np.float32))
    value = v1.placeholder(tf.float32)
    assign = tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
    graphs.keep_shape(assign)
    with session() as opened:
        opened.run(assign, {value: [1.0, 2.0]})
        with pytest.raises(tf.errors.InvalidArgumentError):
            opened.run(assign, {value: [1.0, 2.0, 3.0]})
        assert opened.run(variable).tolist() == [1.0, 2.0]


def test_replace_input_changes_an_existing_operation() -> None:
    total = tf.add(tf.constant(1.0), tf.constant(2.0))
    graphs.replace_input(total.op, 0, tf.constant(10.0))
    with session() as opened:
        assert opened.run(total) == 12.0


def test_set_initializer_replaces_the_initializer_of_a_variable() -> None:
    variable = v1.get_variable("variable", [], initializer=v1.zeros_initializer())
    graphs.set_initializer(variable, tf.raw_ops.AssignVariableOp(resource=variable.handle, value=5.0))
    with session() as opened:
        opened.run(v1.global_variables_initializer())
        assert opened.run(variable) == 5.0


def test_losses_are_summed_reflects_the_reduction_of_the_last_loss(two_replicas: tf.distribute.Strategy) -> None:
    results = []
    ones = tf.ones([2])
    with two_replicas.scope(), distribute.averaging_v1_gradients(two_replicas):
        for reduction in (v1.losses.Reduction.SUM, v1.losses.Reduction.SUM_OVER_BATCH_SIZE):
            v1.losses.mean_squared_error(ones, ones, reduction=reduction)
            results.append(graphs.losses_are_summed())
    assert results == [True, False]


def test_ops_are_deterministic_after_enabling_determinism() -> None:
    in_a_process("determinism")


def test_function_definition_is_the_body_of_a_branch(graph: tf.Graph) -> None:
    tf.cond(v1.placeholder(tf.bool, []), lambda: tf.constant(2.0), lambda: tf.constant(3.0), name="branch")
    branch = graph.get_operation_by_name("branch")
    body = graphs.function_definition(graph, branch.get_attr("then_branch").name)
    (constant,) = (node for node in body.node_def if node.op == "Const")
    assert constant.attr["value"].tensor.float_val == [2.0]
