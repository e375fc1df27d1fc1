"""Make Keras 3 correct inside a v1 graph.

Keras 3 writes its state (weights, moving averages, seeds, iteration counts, metric sums) with `assign` operations that
nothing in the graph depends on. By default they never run, and reads and writes have no order. After model_fn returns,
`KerasState` orders the operations on each Keras variable by creation, and the writes become part of `train_op`.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine.graph.operations import initializers_of, only_reads, replica_variables, writes_for_keras
from ray_estimator._tf_private import graphs
from ray_estimator._tf_private.keras import created_by_keras, keras_in_graph


class KerasState:
    """The variables that Keras creates while a model is built, and the operations on them."""

    def __init__(self) -> None:
        self.variables: list[tf.Variable] = []
        self._first_op = len(v1.get_default_graph().get_operations())

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record the variables that Keras creates, and give them the names that Keras assigns."""

        def creator(next_creator: Any, **kwargs: Any) -> tf.Variable:
            variable = next_creator(**kwargs)
            if created_by_keras():
                self.variables.append(variable)
            return variable

        with keras_in_graph(), tf.variable_creator_scope(creator):
            yield

    def order(self) -> list[tf.Operation]:
        """Add control edges so that operations on a variable run in creation order, and return the writes.

        Call once, after model_fn.
        """
        handles = _handle_names(self.variables)
        if not handles:
            return []
        initializers = {op for variable in self.variables for op in initializers_of(variable)}
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
                    # Later operations can wait for a loop or branch only through its outputs.
                    continue
                if only_reads(op):
                    reads[name].append(op)
                    continue
                # An unknown operation with the handle, such as the While of an LSTM, may write.
                graphs.run_after(op, reads.pop(name, []))
                last_write[name] = op
                if writes_for_keras(op):
                    writes.append(op)
        return writes


def writes_of(variables: Sequence[tf.Variable], writes: Iterable[tf.Operation]) -> list[tf.Operation]:
    """Return the operations of `writes` that write one of `variables`."""
    handles = _handle_names(variables)
    return [op for op in writes if any(tensor.name in handles for tensor in op.inputs)]


def _handle_names(variables: Sequence[tf.Variable]) -> set[str]:
    plain = (each for variable in variables for each in replica_variables(variable))
    return {variable.handle.name for variable in plain if hasattr(variable, "handle")}
