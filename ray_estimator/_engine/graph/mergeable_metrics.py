"""Whether metric states of row ranges may be added up: shown by the graph, never by trying."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from ray_estimator._engine.graph.input_barrier import INPUT_OPS, written_by
from ray_estimator._engine.graph.traversal import ancestors
from ray_estimator._engine.tf_private import graphs

_OF_A_BATCH = (*INPUT_OPS, "Placeholder")
_TABLES = ("MutableHashTable", "MutableDenseHashTable")
_REMEMBERING = ("PyFunc", "EagerPyFunc", *_TABLES)
_ADDING = {
    *("AssignAddVariableOp", "AssignSubVariableOp", "ResourceScatterAdd", "ResourceScatterSub", "ResourceScatterNdAdd"),
    *("AssignAdd", "AssignSub", "ScatterAdd", "ScatterSub", "ScatterNdAdd", "ScatterNdSub", "ResourceScatterNdSub"),
}
_ASSIGNING = {"AssignVariableOp", "Assign"}
_SAME_VALUE = {"Identity", "Snapshot", "EnsureShape"}


def reason_against_adding(
    update_op: tf.Operation, values: Mapping[str, Any], state: Sequence[tf.Variable]
) -> str | None:
    """Why the states that ranges leave behind do not add up to that of a single pass; None if they do.

    They do if an update writes to nothing but metric variables, only adds to these, what it adds depends on no metric
    variable, and values are made of variables alone. TensorFlow's metrics and those of Keras are of this kind. Of
    others, some add up as well; they are refused like those that do not, since a few batches would prove nothing: a
    maximum of what is almost always 0 looks like a sum.

    Args:
        update_op: Runs once for each batch.
        values: What is fetched at the end, by metric name.
        state: The metric variables.
    """
    for name, value in values.items():
        for op in ancestors(_operations(value)):
            if op.type.startswith(_OF_A_BATCH):
                return f"the value of the metric {name!r} depends on tensors of a batch"
            if op.type.startswith(_REMEMBERING) and op.type != "PyFuncStateless":
                return f"the value of the metric {name!r} comes from {op.type}, which may remember batches"
    return _Updates(state).reason(update_op)


class _Updates:
    """What updates write to the metric variables."""

    def __init__(self, state: Sequence[tf.Variable]) -> None:
        self._names = {_handle_name(variable): variable.op.name for variable in state}

    def reason(self, update_op: tf.Operation) -> str | None:
        for op in ancestors([update_op]):
            for written in written_by(op):
                name = self._names.get(written.name)
                if name is None:
                    return f"an update writes {written.op.name!r}, which is no metric variable"
                added = self._added_by(op, written)
                if added is None:
                    return f"an update does not just add to the metric variable {name!r}"
                if self._reads_state(added, op):
                    return f"what an update adds to the metric variable {name!r} depends on what was added before"
        return None

    def _added_by(self, op: tf.Operation, written: tf.Tensor) -> list[tf.Tensor] | None:
        """What `op` adds to the variable; None if it may do something else to it."""
        if op.type in _ADDING:
            return list(op.inputs[1:])
        if op.type not in _ASSIGNING:
            return None
        total = _source(op.inputs[1])
        first, *others = total.op.inputs if total.op.type in ("AddV2", "Add", "Sub") else [total]
        if _reads(first, written):
            return others
        if total.op.type != "Sub" and others and _reads(others[0], written):
            return [first]
        return None

    def _reads_state(self, tensors: Iterable[tf.Tensor], writer: tf.Operation) -> bool:
        if graphs.in_v1_control_flow(writer):
            # Whether it runs at all is a matter of control edges there.
            made_by = ancestors([*(tensor.op for tensor in tensors), *writer.control_inputs])
        else:
            made_by = _data_ancestors(tensors)
        return any(
            op.type.startswith(_TABLES) or any(tensor.name in self._names for tensor in op.inputs) for op in made_by
        )


def _handle_name(variable: tf.Variable) -> str:
    return str(variable.handle.name if hasattr(variable, "handle") else variable.name)


def _source(tensor: tf.Tensor) -> tf.Tensor:
    while tensor.op.type in _SAME_VALUE:
        tensor = tensor.op.inputs[0]
    return tensor


def _reads(tensor: tf.Tensor, written: tf.Tensor) -> bool:
    source = _source(tensor)
    if source.op.type == "ReadVariableOp":
        source = source.op.inputs[0]
    return bool(source.name == written.name)


def _data_ancestors(tensors: Iterable[tf.Tensor]) -> set[tf.Operation]:
    """The operations whose results `tensors` are made of."""
    seen: set[tf.Operation] = set()
    waiting = [tensor.op for tensor in tensors]
    while waiting:
        op = waiting.pop()
        if op not in seen:
            seen.add(op)
            waiting.extend(tensor.op for tensor in op.inputs)
    return seen


def _operations(value: Any) -> Iterable[tf.Operation]:
    for part in tf.nest.flatten(value, expand_composites=True):
        yield part if isinstance(part, tf.Operation) else tf.convert_to_tensor(part).op
