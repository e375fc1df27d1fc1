"""Make a training or evaluation step that gets no batch write no variable.

TensorFlow runs what it can of a step before the input reports its end. A counter that does not depend on the batch
would count one step too many, and a mean would add to its total without adding to its count.
"""

from __future__ import annotations

import tensorflow as tf

from ray_estimator._engine.graph.operations import takes_batch, written_by
from ray_estimator._engine.graph.traversal import ancestors, descendants
from ray_estimator._tf_private import graphs


def write_after_input(step: tf.Operation) -> None:
    """Make the operations of `step` that write variables wait for its batches."""
    run = ancestors([step])
    inputs = [op for op in run if takes_batch(op)]
    ordered = descendants(inputs, run) | ancestors(inputs)
    for op in run - ordered:
        if written_by(op) and not graphs.in_v1_control_flow(op):
            graphs.run_after(op, inputs)


def depends_on_input(tensor: tf.Tensor) -> bool:
    """Return whether `tensor` depends on a batch, also if it is inside a branch, loop or function."""
    run = ancestors([tensor.op])
    if any(takes_batch(op) for op in run):
        return True
    captures = getattr(tensor.graph, "captures", ())
    return any(depends_on_input(outer) for outer, inner in captures if inner.op in run)
