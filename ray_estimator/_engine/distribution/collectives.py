"""One order for the collectives of a step, and a fingerprint by which ranks compare their graphs.

NCCL needs the same order of collectives on every rank. Within a strategy's packed all-reduce TensorFlow chains them;
the gathers of embedding gradients, metric reductions and our control vector it leaves free.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine.graph.traversal import ancestors
from ray_estimator._engine.tf_private import graphs
from ray_estimator._engine.tf_private import strategy as strategy_private
from ray_estimator.errors import RanksDisagreeError


def collectives_of(targets: Iterable[tf.Operation]) -> list[tf.Operation]:
    """The collectives that a run of `targets` executes, in creation order, which is the same on every rank."""
    run = ancestors(targets)
    return [op for op in every_collective() if op in run]


def every_collective() -> list[tf.Operation]:
    """The collectives of the default graph, whatever runs them, in creation order."""
    operations = v1.get_default_graph().get_operations()
    return [op for op in operations if op.type.startswith("Collective") and _communicates(op)]


def _communicates(op: tf.Operation) -> bool:
    return op.type not in {"CollectiveInitializeCommunicator", "CollectiveAssignGroupV2"}


def slot_for(
    vector: tf.Tensor, train_op: tf.Operation, slots: Iterable[strategy_private.AllReduceSlot]
) -> strategy_private.AllReduceSlot | None:
    """The last slot in a step's all-reduces that has to wait for none that `vector` does not wait for; None if none."""
    position = {op: number for number, op in enumerate(v1.get_default_graph().get_operations())}
    run = ancestors([train_op])
    needed = max((position[op] for op in collectives_of([vector.op])), default=-1)
    fitting = [slot for slot in slots if slot.op in run and position[slot.op] > needed]
    return fitting[-1] if fitting else None


def chain(targets: Iterable[tf.Operation]) -> list[tf.Operation]:
    """Makes the collectives of a run of `targets` follow one another; gives them in their order.

    Only operations that run together may be chained: a control edge pulls its origin into the run.
    """
    ordered = collectives_of(targets)
    for earlier, later in itertools.pairwise(ordered):
        graphs.run_after(later, [earlier])
    return ordered


def chain_after(step: list[tf.Operation], targets: Iterable[tf.Operation]) -> list[tf.Operation]:
    """Makes the collectives that only a run of `targets` adds to a step follow the step's own; gives the added ones.

    `targets` must only ever run together with the step.
    """
    known = set(step)
    added = [op for op in collectives_of(targets) if op not in known]
    for earlier, later in itertools.pairwise([*step[-1:], *added]):
        graphs.run_after(later, [earlier])
    return added


def fingerprint(step: Sequence[tf.Operation]) -> list[str]:
    """Lines that are equal on every rank of a group that can train.

    They name the variables; the collectives of a `step`, in order; and those that something else runs, such as the
    initialisation, a save or a hook.
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
        kind = "CollectiveBcast"  # one rank sends what the others receive
    tensor = op.outputs[0]
    return f"collective {kind} {tensor.dtype.name} {tensor.shape}"


def require_equal(fingerprints: list[list[str]]) -> None:
    """Raises `RanksDisagreeError` with the first line in which a rank differs from rank 0."""
    first = fingerprints[0]
    for rank, lines in enumerate(fingerprints[1:], start=1):
        if lines == first:
            continue
        for number in range(max(len(first), len(lines))):
            ours = first[number] if number < len(first) else "nothing more"
            theirs = lines[number] if number < len(lines) else "nothing more"
            if ours != theirs:
                raise RanksDisagreeError(f"rank 0 has {ours!r} where rank {rank} has {theirs!r}")
