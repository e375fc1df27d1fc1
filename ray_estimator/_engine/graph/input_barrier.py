"""A step for which there is no batch changes nothing.

TensorFlow runs what it can of a step before the input reports its end: a counter that does not look at the batch would
count one step too many, and a mean add to its total, but not to its count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import tensorflow as tf

from ray_estimator._engine.graph.traversal import ancestors
from ray_estimator._engine.tf_private import graphs

INPUT_OPS = ("IteratorGetNext", "QueueDequeue", "ReaderRead")
_WRITE_OPS = ("Assign", "Scatter", "ResourceScatter", "ResourceApply", "Apply", "CountUpTo")


def write_after_input(step: tf.Operation) -> None:
    """Makes what a run of `step` writes to variables wait for the batches that it takes."""
    run = ancestors([step])
    inputs = [op for op in run if op.type.startswith(INPUT_OPS)]
    bound = _descendants(inputs, run) | ancestors(inputs)
    for op in run - bound:
        if written_by(op) and not graphs.in_v1_control_flow(op):
            graphs.run_after(op, inputs)


def depends_on_input(tensor: tf.Tensor) -> bool:
    """Whether `tensor` is made of a batch, be it from within a branch, loop or function."""
    run = ancestors([tensor.op])
    if any(op.type.startswith(INPUT_OPS) for op in run):
        return True
    captures = getattr(tensor.graph, "captures", ())
    return any(depends_on_input(outer) for outer, inner in captures if inner.op in run)


def written_by(op: tf.Operation) -> list[tf.Tensor]:
    """The variables, as handles or references, that `op` writes to by itself or in a branch, loop or function."""
    states = [number for number, tensor in enumerate(op.inputs) if _is_state(tensor)]
    if op.type.startswith(_WRITE_OPS):
        written = [number for number in states if number == 0]
    else:
        written = [number for number in states if graphs.writes_input(op, number)]
    return [op.inputs[number] for number in written]


def _is_state(tensor: tf.Tensor) -> bool:
    # A reference's dtype differs from its base; tf.scatter_nd, which makes a new tensor, takes neither.
    return bool(tensor.dtype == tf.resource or tensor.dtype != tensor.dtype.base_dtype)


def _descendants(sources: Iterable[tf.Operation], run: set[tf.Operation]) -> set[tf.Operation]:
    """The operations of `run` that wait for one of `sources`."""
    followers = defaultdict(list)
    for op in run:
        for earlier in (*(tensor.op for tensor in op.inputs), *op.control_inputs):
            followers[earlier].append(op)
    seen: set[tf.Operation] = set()
    waiting = list(sources)
    while waiting:
        for op in followers[waiting.pop()]:
            if op not in seen:
                seen.add(op)
                waiting.append(op)
    return seen
