"""Makes Keras 3 correct inside a v1 graph.

Keras 3 writes its state (weights, moving averages, seeds, iteration counts, metric sums) with `assign` calls whose
operations nothing in a graph depends on: unhelped they never run, and what runs has no order. After model_fn returns,
its operations are ordered, for each variable of Keras's, in the order in which model_fn created them; the writes join
`train_op`.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine.tf_private import graphs
from ray_estimator._engine.tf_private import keras as keras_private

_READS = {"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp"}
_WRITES = {
    "AssignVariableOp",
    "AssignAddVariableOp",
    "AssignSubVariableOp",
    *(f"ResourceScatter{kind}" for kind in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Update")),
}


class KerasState:
    """The variables that Keras created while a model was built, and what model_fn does to them."""

    def __init__(self) -> None:
        self.variables: list[tf.Variable] = []
        self._first_op = len(v1.get_default_graph().get_operations())

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Notes the variables that Keras creates within, whose names are Keras's own."""

        def creator(next_creator: Any, **kwargs: Any) -> tf.Variable:
            variable = next_creator(**kwargs)
            if keras_private.created_by_keras():
                self.variables.append(variable)
            return variable

        with keras_private.keras_in_graph(), tf.variable_creator_scope(creator):
            yield

    def order(self) -> list[tf.Operation]:
        """Chains reads and writes of each variable in creation order; gives the writes. Call once, after model_fn."""
        handles = {handle.name for variable in self.variables for handle in _handles(variable)}
        if not handles:
            return []
        initializers = {op for variable in self.variables for op in _initializers(variable)}
        last_write: dict[str, tf.Operation] = {}
        reads: dict[str, list[tf.Operation]] = defaultdict(list)
        writes = []
        for op in v1.get_default_graph().get_operations()[self._first_op :]:
            if op in initializers:
                continue
            for name in {tensor.name for tensor in op.inputs if tensor.name in handles}:
                if name in last_write:
                    graphs.run_after(op, [last_write[name]])
                if graphs.in_v1_control_flow(op):
                    # What follows a loop or branch waits for its outcome at most, by the data.
                    continue
                if op.type in _READS:
                    reads[name].append(op)
                    continue
                # An unknown operation with the handle, such as the While of an LSTM, may write.
                graphs.run_after(op, reads.pop(name, []))
                last_write[name] = op
                if op.type in _WRITES:
                    writes.append(op)
        return writes


def writes_of(variables: Sequence[tf.Variable], writes: Iterable[tf.Operation]) -> list[tf.Operation]:
    """Those of `writes` that write one of `variables`."""
    handles = {handle.name for variable in variables for handle in _handles(variable)}
    return [op for op in writes if any(tensor.name in handles for tensor in op.inputs)]


def _components(variable: tf.Variable) -> Sequence[tf.Variable]:
    return getattr(variable, "values", None) or [variable]


def _handles(variable: tf.Variable) -> list[tf.Tensor]:
    return [component.handle for component in _components(variable) if hasattr(component, "handle")]


def _initializers(variable: tf.Variable) -> Iterator[tf.Operation]:
    for component in _components(variable):
        initializer = component.initializer
        yield initializer
        yield from initializer.control_inputs
