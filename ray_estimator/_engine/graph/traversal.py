"""Walks over a graph's operations."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf


def ancestors(targets: Iterable[tf.Operation]) -> set[tf.Operation]:
    """Every operation that a run of `targets` executes."""
    seen: set[tf.Operation] = set()
    waiting = list(targets)
    while waiting:
        op = waiting.pop()
        if op in seen:
            continue
        seen.add(op)
        waiting.extend(tensor.op for tensor in op.inputs)
        waiting.extend(op.control_inputs)
    return seen
