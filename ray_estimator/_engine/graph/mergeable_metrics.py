"""Decide from the graph whether metric states of row ranges can be merged by adding them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from ray_estimator._engine.graph import operations
from ray_estimator._engine.graph.traversal import ancestors, data_ancestors
from ray_estimator._tf_private import graphs


def reason_not_mergeable(
    update_op: tf.Operation, values: Mapping[str, Any], state: Sequence[tf.Variable]
) -> str | None:
    """Return why the metric states of row ranges do not add up to the state of a single pass.

    They do if updates write only metric variables and only add to them, the added amounts do not depend on metric
    variables, and the values depend on variables alone. This holds for the metrics of TensorFlow and Keras. Other
    metrics are refused even if they happen to add up, because a few batches prove nothing: a maximum of values that are
    almost always 0 looks like a sum.

    Args:
        update_op: Operation that runs once per batch.
        values: Final metric values, by name.
        state: Metric variables.

    Returns:
        The reason, or None if the states can be added.
    """
    for name, value in values.items():
        for op in ancestors(_operations(value)):
            if operations.differs_by_batch(op):
                return f"the value of the metric {name!r} depends on tensors of a batch"
            if operations.may_remember(op):
                return f"the value of the metric {name!r} comes from {op.type}, which may remember batches"
    return _Updates(state).reason_not_mergeable(update_op)


class _Updates:
    """The writes of an update to the metric variables."""

    def __init__(self, state: Sequence[tf.Variable]) -> None:
        self._names = {operations.variable_input_name(variable): variable.op.name for variable in state}

    def reason_not_mergeable(self, update_op: tf.Operation) -> str | None:
        for op in ancestors([update_op]):
            for written in operations.written_by(op):
                name = self._names.get(written.name)
                if name is None:
                    return f"an update writes {written.op.name!r}, which is not a metric variable"
                added = _added_by(op, written)
                if added is None:
                    return f"an update does more than add to the metric variable {name!r}"
                if self._depend_on_state(added, op):
                    return f"the amount that an update adds to the metric variable {name!r} depends on earlier updates"
        return None

    def _depend_on_state(self, tensors: Iterable[tf.Tensor], writer: tf.Operation) -> bool:
        if graphs.in_v1_control_flow(writer):
            # Control edges decide whether it runs at all.
            sources = ancestors([*(tensor.op for tensor in tensors), *writer.control_inputs])
        else:
            sources = data_ancestors(tensors)
        return any(
            operations.uses_table(op) or any(tensor.name in self._names for tensor in op.inputs) for op in sources
        )


def _added_by(op: tf.Operation, written: tf.Tensor) -> list[tf.Tensor] | None:
    """Return the tensors that `op` adds to the variable; None if it may change the variable in another way."""
    if operations.adds(op):
        return list(op.inputs[1:])
    if not operations.assigns(op):
        return None
    total = operations.copied_from(op.inputs[1])
    is_sum, is_difference = operations.is_sum(total.op), operations.is_difference(total.op)
    first, *others = total.op.inputs if is_sum or is_difference else [total]
    if _reads(first, written):
        return others
    if is_sum and _reads(others[0], written):
        return [first]
    return None


def _reads(tensor: tf.Tensor, written: tf.Tensor) -> bool:
    return bool(operations.variable_read(tensor).name == written.name)


def _operations(value: Any) -> Iterable[tf.Operation]:
    for part in tf.nest.flatten(value, expand_composites=True):
        yield part if isinstance(part, tf.Operation) else tf.convert_to_tensor(part).op
