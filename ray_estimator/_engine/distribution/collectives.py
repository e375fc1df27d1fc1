"""Order the collectives of a step, and compare graphs between ranks.

NCCL needs the same order of collectives on every rank. TensorFlow orders the collectives of a strategy's packed
all-reduce, but not the gathers of sparse gradients, the reductions of metrics or the all-reduce of the control vector.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine.graph.traversal import ancestors
from ray_estimator._tf_private import graphs
from ray_estimator._tf_private.distribute import AllReduceSlot
from ray_estimator.errors import RanksDisagreeError


def collectives_of(targets: Iterable[tf.Operation]) -> list[tf.Operation]:
    """Return the collectives that a run of `targets` executes, in creation order, which is the same on every rank."""
    run = ancestors(targets)
    return [op for op in every_collective() if op in run]


def every_collective() -> list[tf.Operation]:
    """Return all collectives of the default graph, in creation order."""
    operations = v1.get_default_graph().get_operations()
    return [op for op in operations if op.type.startswith("Collective") and _communicates(op)]


def _communicates(op: tf.Operation) -> bool:
    return op.type not in {"CollectiveInitializeCommunicator", "CollectiveAssignGroupV2"}


def slot_for(vector: tf.Tensor, train_op: tf.Operation, slots: Iterable[AllReduceSlot]) -> AllReduceSlot | None:
    """Return the slot for `vector` in the last all-reduce of the step; None if there is no suitable slot.

    A slot is suitable if its all-reduce was created after every collective that `vector` depends on.
    """
    position = {op: number for number, op in enumerate(v1.get_default_graph().get_operations())}
    run = ancestors([train_op])
    needed = max((position[op] for op in collectives_of([vector.op])), default=-1)
    suitable = [slot for slot in slots if slot.op in run and position[slot.op] > needed]
    return suitable[-1] if suitable else None


def chain(targets: Iterable[tf.Operation]) -> list[tf.Operation]:
    """Add control edges that run the collectives of `targets` one after the other, and return them in that order.

    Chain only operations that always run together: a control edge adds its source to the run.
    """
    ordered = collectives_of(targets)
    for earlier, later in itertools.pairwise(ordered):
        graphs.run_after(later, [earlier])
    return ordered


def chain_after(step: list[tf.Operation], targets: Iterable[tf.Operation]) -> list[tf.Operation]:
    """Run the collectives of `targets` that are not in the step after those of the step, and return them.

    Args:
        step: Collectives of the step, in order.
        targets: Operations that run only together with the step.
    """
    in_step = set(step)
    added = [op for op in collectives_of(targets) if op not in in_step]
    for earlier, later in itertools.pairwise([*step[-1:], *added]):
        graphs.run_after(later, [earlier])
    return added


def fingerprint(step: Sequence[tf.Operation]) -> list[str]:
    """Return lines that must be equal on all ranks: variables, collectives of `step` in order, and other collectives.

    Other collectives run in the initialization, a save or a hook.
    """
    lines = [
        f"variable {variable.name} {variable.dtype.base_dtype.name} {variable.shape}"
        for variable in v1.global_variables()
    ]
    in_step = set(step)
    others = [op for op in every_collective() if op not in in_step]
    return lines + [_line(op) for op in [*step, *others]]


def _line(op: tf.Operation) -> str:
    kind = f"{op.type} {op.name}"
    if op.type.startswith("CollectiveBcast"):
        kind = "CollectiveBcast"  # one rank runs the send, the others the receive
    tensor = op.outputs[0]
    return f"collective {kind} {tensor.dtype.name} {tensor.shape}"


def require_equal(fingerprints: list[list[str]]) -> None:
    """Raise `RanksDisagreeError` with the first line in which a rank differs from rank 0."""
    first = fingerprints[0]
    for rank, lines in enumerate(fingerprints[1:], start=1):
        if lines == first:
            continue
        for number in range(max(len(first), len(lines))):
            expected = first[number] if number < len(first) else "no further line"
            actual = lines[number] if number < len(lines) else "no further line"
            if expected != actual:
                raise RanksDisagreeError(f"rank 0 has {expected!r} where rank {rank} has {actual!r}")
