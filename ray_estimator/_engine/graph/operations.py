"""What operations do to variables, inputs and other state, by operation type.

Every list of operation types is in this module. Other modules ask it a question about an operation; how an unknown type
is treated is decided here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from ray_estimator._tf_private.graphs import function_definition

READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp"})
"""Types that read a resource variable and never write it. `spec` has a copy, because it cannot import the engine."""

_ASSIGNMENTS = frozenset({"AssignVariableOp", "Assign"})
_ADDITIONS = frozenset(
    {
        *("AssignAddVariableOp", "AssignSubVariableOp", "AssignAdd", "AssignSub"),
        *("ResourceScatterAdd", "ResourceScatterSub", "ResourceScatterNdAdd", "ResourceScatterNdSub"),
        *("ScatterAdd", "ScatterSub", "ScatterNdAdd", "ScatterNdSub"),
    }
)
_KERAS_WRITES = frozenset(
    {
        *("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"),
        *(f"ResourceScatter{kind}" for kind in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Update")),
    }
)
_WRITES_IN_FUNCTIONS = frozenset(
    {
        *("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "Assign", "AssignAdd", "CountUpTo"),
    }
)
_WRITE_PREFIXES = ("Assign", "Scatter", "ResourceScatter", "ResourceApply", "Apply", "CountUpTo")
_QUEUE_PREFIXES = ("QueueDequeue", "ReaderRead")
_TABLE_PREFIXES = ("MutableHashTable", "MutableDenseHashTable")
_PYTHON_PREFIXES = ("PyFunc", "EagerPyFunc")
_COPIES = frozenset({"Identity", "Snapshot", "EnsureShape"})
_SUMS = frozenset({"AddV2", "Add"})
_DIFFERENCES = frozenset({"Sub"})


# Input and other state


def takes_from_iterator(op: tf.Operation) -> bool:
    """Return whether `op` takes the next element from a tf.data iterator."""
    return bool(op.type.startswith("IteratorGetNext"))


def takes_batch(op: tf.Operation) -> bool:
    """Return whether `op` takes the next element from an iterator, queue or reader."""
    return takes_from_iterator(op) or bool(op.type.startswith(_QUEUE_PREFIXES))


def differs_by_batch(op: tf.Operation) -> bool:
    """Return whether the output of `op` comes from outside the graph: a batch or a fed value."""
    return takes_batch(op) or bool(op.type.startswith("Placeholder"))


def uses_table(op: tf.Operation) -> bool:
    """Return whether `op` reads or writes a mutable lookup table."""
    return bool(op.type.startswith(_TABLE_PREFIXES))


def may_remember(op: tf.Operation) -> bool:
    """Return whether `op` may keep state between runs outside of variables: a lookup table or Python code."""
    return uses_table(op) or (op.type.startswith(_PYTHON_PREFIXES) and op.type != "PyFuncStateless")


# Variables


def replica_variables(variable: tf.Variable) -> Sequence[tf.Variable]:
    """Return the variables that a distributed variable consists of; a list of `variable` if it is a plain one."""
    return getattr(variable, "values", None) or [variable]


def variable_input_name(variable: tf.Variable) -> str:
    """Return the name of the tensor that operations on a plain variable take: its handle or reference."""
    return str(variable.handle.name if hasattr(variable, "handle") else variable.name)


def initializers_of(variable: tf.Variable) -> Iterator[tf.Operation]:
    """Yield the initializers of a variable, and the operations that these wait for."""
    for plain in replica_variables(variable):
        yield plain.initializer
        yield from plain.initializer.control_inputs


# Reads and writes


def only_reads(op: tf.Operation) -> bool:
    """Return whether `op`, which takes a resource variable, only reads it. An unknown operation may write."""
    return op.type in READS


def writes_for_keras(op: tf.Operation) -> bool:
    """Return whether `op`, which takes a Keras variable, is one of the operations with which Keras writes it."""
    return op.type in _KERAS_WRITES


def assigns(op: tf.Operation) -> bool:
    """Return whether `op` replaces the value of the variable in its first input by its second input."""
    return op.type in _ASSIGNMENTS


def adds(op: tf.Operation) -> bool:
    """Return whether `op` adds to, or subtracts from, the variable in its first input."""
    return op.type in _ADDITIONS


def written_by(op: tf.Operation) -> list[tf.Tensor]:
    """Return the variables that `op` writes, as handles or references, including those written in function bodies."""
    states = [number for number, tensor in enumerate(op.inputs) if _is_state(tensor)]
    if op.type.startswith(_WRITE_PREFIXES):
        written = [number for number in states if number == 0]
    else:
        written = [number for number in states if assigns_to_input(op, number)]
    return [op.inputs[number] for number in written]


def assigns_to_input(op: tf.Operation, number: int) -> bool:
    """Return whether `op` assigns to the variable in its input `number`, itself or in a branch, loop or function."""
    return _assigns(op.graph, op.node_def, len(op.inputs), number)


def _is_state(tensor: tf.Tensor) -> bool:
    # A reference's dtype differs from its base; tf.scatter_nd, which makes a new tensor, takes neither.
    return bool(tensor.dtype == tf.resource or tensor.dtype != tensor.dtype.base_dtype)


def _assigns(graph: tf.Graph, node: Any, num_inputs: int, number: int) -> bool:
    if node.op in _WRITES_IN_FUNCTIONS:
        return number == 0
    names = [name for value in node.attr.values() for name in (value.func.name, *(f.name for f in value.list.func))]
    return any(_body_assigns(graph, name, num_inputs, number) for name in names if name)


def _body_assigns(graph: tf.Graph, name: str, num_inputs: int, number: int) -> bool:
    body = function_definition(graph, name)
    arguments = body.signature.input_arg
    # A branch's predicate precedes the arguments of its bodies.
    position = number - (num_inputs - len(arguments))
    if not 0 <= position < len(arguments):
        return False
    argument = arguments[position].name
    for node in body.node_def:
        inputs = [each for each in node.input if not each.startswith("^")]
        if any(each == argument and _assigns(graph, node, len(inputs), n) for n, each in enumerate(inputs)):
            return True
    return False


# Values


def copied_from(tensor: tf.Tensor) -> tf.Tensor:
    """Return the tensor that `tensor` is an unchanged copy of; `tensor` itself if it is not a copy."""
    while tensor.op.type in _COPIES:
        tensor = tensor.op.inputs[0]
    return tensor


def is_sum(op: tf.Operation) -> bool:
    """Return whether `op` adds its two inputs."""
    return op.type in _SUMS


def is_difference(op: tf.Operation) -> bool:
    """Return whether `op` subtracts its second input from its first."""
    return op.type in _DIFFERENCES


def variable_read(tensor: tf.Tensor) -> tf.Tensor:
    """Return the handle or reference of the variable whose current value `tensor` is; otherwise `tensor`'s source."""
    source = copied_from(tensor)
    return source.op.inputs[0] if source.op.type == "ReadVariableOp" else source
