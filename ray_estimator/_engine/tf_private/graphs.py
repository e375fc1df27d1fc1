"""Every private name of TensorFlow and Keras that the engine leans on, each behind a function with a public meaning.

An upgrade that moves one of them shows in `tests/engine/test_internals.py`, one test for each. `strategy_internals` has
those of tf.distribute.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf
from tensorflow.python.distribute import distribute_utils
from tensorflow.python.framework import config
from tensorflow.python.util import tf_export

# TensorFlow: what it says


# TensorFlow: graphs and sessions


def run_after(op: tf.Operation, earlier: Iterable[tf.Operation]) -> None:
    """Adds control edges to an existing operation."""
    op._add_control_inputs([e for e in earlier if e is not op])


def in_v1_control_flow(op: tf.Operation) -> bool:
    """Whether `op` belongs to a v1 loop or branch: control edges may enter one where it begins, but none may leave."""
    return op._get_control_flow_context() is not None


def keep_shape(assign: tf.Operation) -> None:
    """Makes an assignment to a resource variable fail for a value of another shape; unhelped it changes the variable's.

    Call before any session has run the graph.
    """
    handle, value = assign.inputs
    if handle.op.type != "VarHandleOp":
        return
    with tf.device(value.device), tf.control_dependencies(None):
        assign._update_input(1, tf.ensure_shape(value, handle.op.get_attr("shape")))


def replace_input(op: tf.Operation, number: int, tensor: tf.Tensor) -> None:
    """Gives an existing operation another input. Call before any session has run the graph."""
    op._update_input(number, tensor)


def set_initializer(variable: tf.Variable, initializer: tf.Operation) -> None:
    """Makes `initializer` what initialises the variable."""
    variable._initializer_op = initializer


_WRITES = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "Assign", "AssignAdd", "CountUpTo"}


def writes_input(op: tf.Operation, number: int) -> bool:
    """Whether `op` assigns to the variable that its input `number` is, by itself or in a branch, loop or function."""
    return _writes(op.graph, op.node_def, len(op.inputs), number)


def _writes(graph: tf.Graph, node: Any, num_inputs: int, number: int) -> bool:
    if node.op in _WRITES:
        return number == 0
    names = [name for value in node.attr.values() for name in (value.func.name, *(f.name for f in value.list.func))]
    return any(_body_writes(graph, name, num_inputs, number) for name in names if name)


def _body_writes(graph: tf.Graph, name: str, num_inputs: int, number: int) -> bool:
    body = graph._get_function(name).cached_definition
    arguments = body.signature.input_arg
    # The predicate of a branch comes before what its bodies get.
    position = number - (num_inputs - len(arguments))
    if not 0 <= position < len(arguments):
        return False
    argument = arguments[position].name
    for node in body.node_def:
        inputs = [each for each in node.input if not each.startswith("^")]
        if any(each == argument and _writes(graph, node, len(inputs), n) for n, each in enumerate(inputs)):
            return True
    return False


def ops_are_deterministic() -> bool:
    """Whether `tf.config.experimental.enable_op_determinism` was called, which allows no clock in a graph."""
    return bool(config.is_op_determinism_enabled())


# TensorFlow: tf.data iterators


# TensorFlow: the global step, losses, switches


def losses_are_summed() -> bool:
    """Whether the model built its last loss with `Reduction.SUM`. Call in the replica, after model_fn."""
    return bool(distribute_utils.get_loss_reduction() == tf.distribute.ReduceOp.SUM)


# Keras 3


# TensorFlow: names


def public_name_of(symbol: Any) -> str | None:
    """The name below ``tf.`` by which everybody may use a function or class of TensorFlow; None if there is none."""
    name: str | None = tf_export.get_canonical_name_for_symbol(symbol, add_prefix_to_v1_names=True)
    return name
