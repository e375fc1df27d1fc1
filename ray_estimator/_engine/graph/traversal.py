"""Graph traversal: which operations a run executes, and which follow from an operation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import tensorflow as tf

Neighbors = Callable[[tf.Operation], Iterable[tf.Operation]]


def ancestors(targets: Iterable[tf.Operation]) -> set[tf.Operation]:
    """Return every operation that a run of `targets` executes, including `targets`."""
    return _reachable(targets, predecessors)


def data_ancestors(tensors: Iterable[tf.Tensor]) -> set[tf.Operation]:
    """Return the operations that compute `tensors`, without those that are connected by control edges only."""
    return _reachable((tensor.op for tensor in tensors), _data_predecessors)


def descendants(sources: Iterable[tf.Operation], within: Iterable[tf.Operation]) -> set[tf.Operation]:
    """Return the operations of `within` that run after one of `sources`, without `sources` themselves."""
    successors = defaultdict(list)
    for op in within:
        for earlier in predecessors(op):
            successors[earlier].append(op)
    return _reachable((op for source in sources for op in successors[source]), successors.__getitem__)


def predecessors(op: tf.Operation) -> Sequence[tf.Operation]:
    """Return the operations that `op` waits for directly: inputs and control inputs."""
    return [*_data_predecessors(op), *op.control_inputs]


def _data_predecessors(op: tf.Operation) -> list[tf.Operation]:
    return [tensor.op for tensor in op.inputs]


def _reachable(start: Iterable[tf.Operation], neighbors: Neighbors) -> set[tf.Operation]:
    seen: set[tf.Operation] = set()
    pending = list(start)
    while pending:
        op = pending.pop()
        if op not in seen:
            seen.add(op)
            pending.extend(neighbors(op))
    return seen
