"""Private names of TensorFlow's graphs: changes to existing operations, function bodies, losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf
from tensorflow.python.distribute import distribute_utils
from tensorflow.python.framework import config


def run_after(op: tf.Operation, earlier: Iterable[tf.Operation]) -> None:
    """Add control edges from the operations `earlier` to an existing operation."""
    op._add_control_inputs([each for each in earlier if each is not op])


def in_v1_control_flow(op: tf.Operation) -> bool:
    """Return whether `op` belongs to a v1 loop or branch.

    Control edges may lead into a loop or branch only at its start, and never out of it.
    """
    return op._get_control_flow_context() is not None


def keep_shape(assign: tf.Operation) -> None:
    """Make an assignment to a resource variable fail for a value of another shape, instead of changing the shape.

    Call before a session has run the graph.
    """
    handle, value = assign.inputs
    if handle.op.type != "VarHandleOp":
        return
    with tf.device(value.device), tf.control_dependencies(None):
        assign._update_input(1, tf.ensure_shape(value, handle.op.get_attr("shape")))


def replace_input(op: tf.Operation, number: int, tensor: tf.Tensor) -> None:
    """Replace input `number` of an existing operation. Call before a session has run the graph."""
    op._update_input(number, tensor)


def set_initializer(variable: tf.Variable, initializer: tf.Operation) -> None:
    """Replace the initializer of a variable."""
    variable._initializer_op = initializer


def function_definition(graph: tf.Graph, name: str) -> Any:
    """Return the FunctionDef of a function of the graph, such as the body of a branch or loop."""
    return graph._get_function(name).cached_definition


def ops_are_deterministic() -> bool:
    """Return whether `tf.config.experimental.enable_op_determinism` was called. It forbids clocks in a graph."""
    return bool(config.is_op_determinism_enabled())


def losses_are_summed() -> bool:
    """Return whether the model built its last loss with `Reduction.SUM`. Call in the replica, after model_fn."""
    return bool(distribute_utils.get_loss_reduction() == tf.distribute.ReduceOp.SUM)
