"""The order of collectives in a step, and the comparison of graphs between ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import tensorflow as tf

from ray_estimator._engine.distribution.collectives import (
    chain,
    chain_after,
    collectives_of,
    fingerprint,
    require_equal,
    slot_for,
)
from ray_estimator._engine.graph.traversal import ancestors
from ray_estimator._tf_private.distribute import AllReduceSlot
from ray_estimator.errors import RanksDisagreeError

v1 = tf.compat.v1


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    """A new graph for each test, which is never run."""
    with tf.Graph().as_default() as graph:
        yield graph


def reduce(value: tf.Tensor, key: int) -> tf.Tensor:
    return tf.raw_ops.CollectiveReduceV2(
        input=value,
        group_size=2,
        group_key=1,
        instance_key=key,
        ordering_token=[],
        merge_op="Add",
        final_op="Id",
    )


def gather(value: tf.Tensor, key: int) -> tf.Tensor:
    return tf.raw_ops.CollectiveGatherV2(input=value, group_size=2, group_key=1, instance_key=key, ordering_token=[])


def are_chained(ordered: list[tf.Operation]) -> bool:
    return all(early in ancestors([late]) for early, late in itertools.pairwise(ordered))


def test_ancestors_are_the_operations_that_a_run_executes() -> None:
    first = tf.constant(1.0, name="first")
    unused = tf.constant(2.0, name="unused")
    with tf.control_dependencies([tf.no_op(name="by_control")]):
        last = tf.add(first, first, name="last")
    names = {op.name for op in ancestors([last.op])}
    assert names == {"first", "by_control", "last"}
    assert unused.op in ancestors([unused.op])
    assert ancestors([]) == set()


def test_collectives_of_a_run_are_in_creation_order() -> None:
    rows = tf.ones([2, 3])
    second, first = gather(rows, 2), reduce(rows, 1)
    reduce(rows, 3)  # not in the run
    assert collectives_of([first.op, second.op]) == [second.op, first.op]


def test_communicator_setup_is_not_a_collective_of_a_step() -> None:
    communicator = tf.raw_ops.CollectiveInitializeCommunicator(group_key=1, rank=0, group_size=2)
    reduced = tf.raw_ops.CollectiveReduceV3(
        input=tf.ones([2]), communicator=communicator, group_assignment=[[0, 1]], reduction="Add"
    )
    assert collectives_of([reduced.op]) == [reduced.op]


def slot_in_all_reduce(key: int) -> tuple[AllReduceSlot, tf.Tensor]:
    """A slot in a new all-reduce, and the result of the all-reduce."""
    slot = tf.identity(tf.zeros([4]))
    reduced = reduce(slot, key)
    return AllReduceSlot(slot.op, reduced), reduced


def test_slot_for_is_the_last_slot_in_the_step() -> None:
    (first, early), (last, late), (idle, _) = slot_in_all_reduce(1), slot_in_all_reduce(2), slot_in_all_reduce(3)
    vector = tf.ones([4])
    assert slot_for(vector, tf.group(early, late), [first, last, idle]) is last
    assert slot_for(vector, tf.group(early), [first, last, idle]) is first
    assert slot_for(vector, tf.no_op(), [first, last, idle]) is None


def test_slot_for_skips_all_reduces_before_the_collectives_of_the_vector() -> None:
    early_slot, early = slot_in_all_reduce(1)
    vector = early + reduce(tf.ones([4]), 2)  # like a loss that depends on an average
    assert slot_for(vector, tf.group(early, vector), [early_slot]) is None
    late_slot, late = slot_in_all_reduce(3)
    assert slot_for(vector, tf.group(early, late), [early_slot, late_slot]) is late_slot


def test_chain_makes_a_total_order() -> None:
    rows = tf.ones([2, 3])
    free = [reduce(rows, 1), gather(rows, 2), reduce(rows * 2, 3), gather(rows, 4)]
    assert not are_chained([tensor.op for tensor in free])
    ordered = chain([tf.group(*free)])
    assert ordered == [tensor.op for tensor in free]
    assert are_chained(ordered)


def test_chain_keeps_an_existing_order() -> None:
    first = reduce(tf.ones([2]), 1)
    second = reduce(first, 2)
    with tf.control_dependencies([second]):
        third = gather(tf.ones([2]), 3)
    assert chain([third.op]) == [first.op, second.op, third.op]
    assert are_chained([first.op, second.op, third.op])


def test_chain_omits_collectives_outside_the_run() -> None:
    inside, outside = reduce(tf.ones([2]), 1), reduce(tf.ones([2]), 2)
    assert chain([inside.op]) == [inside.op]
    assert list(outside.op.control_inputs) == []
    assert outside.op not in ancestors([inside.op])


def test_chain_after_runs_added_collectives_after_the_step() -> None:
    early_summary = gather(tf.ones([1]), 1)  # created before the step's own
    step = chain([tf.group(reduce(tf.ones([2]), 2), reduce(tf.ones([2]), 3))])
    late_summary = reduce(tf.ones([1]), 4)
    added = chain_after(step, [early_summary.op, late_summary.op])
    assert added == [early_summary.op, late_summary.op]
    assert are_chained([*step, *added])


def test_chain_after_adds_nothing_to_a_run_of_the_step() -> None:
    step_op = tf.group(reduce(tf.ones([2]), 1), reduce(tf.ones([2]), 2))
    step = chain([step_op])
    before = ancestors([step_op])
    added = chain_after(step, [gather(tf.ones([1]), 3).op, gather(step[0].outputs[0], 4).op])
    assert len(added) == 2
    assert ancestors([step_op]) == before
    assert not before & set(added)


def test_chain_after_omits_collectives_of_the_step() -> None:
    reduced = reduce(tf.ones([2]), 1)
    step = chain([reduced.op])
    assert chain_after(step, [(reduced * 2).op]) == []
    assert list(reduced.op.control_inputs) == []


def test_chain_after_a_step_without_collectives_chains_the_added_ones() -> None:
    first, second = gather(tf.ones([1]), 1), gather(tf.ones([1]), 2)
    assert chain_after([], [second.op, first.op]) == [first.op, second.op]
    assert are_chained([first.op, second.op])


def test_fingerprint_lists_variables_and_collectives_in_order() -> None:
    v1.get_variable("weight", [2, 3])
    v1.get_variable("count", [], dtype=tf.int64)
    of_a_hook, of_the_step = (
        tf.raw_ops.CollectiveReduceV2(
            input=tf.ones([2, 3]), group_size=2, group_key=1, instance_key=key, ordering_token=[], merge_op="Add",
            final_op="Id", name=name,
        )
        for key, name in enumerate(["hook", "gradients"])
    )  # fmt: skip
    assert of_a_hook.op.name == "hook"
    assert fingerprint([of_the_step.op]) == [
        "variable weight:0 float32 (2, 3)",
        "variable count:0 int64 ()",
        "collective CollectiveReduceV2 gradients float32 (2, 3)",
        "collective CollectiveReduceV2 hook float32 (2, 3)",
    ]


def test_equal_fingerprints_pass() -> None:
    lines = ["variable a float32 ()", "collective b"]
    require_equal([lines, list(lines), list(lines)])


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (["a", "x", "c"], "rank 0 has 'b' where rank 2 has 'x'"),
        (["a"], "rank 0 has 'b' where rank 2 has 'no further line'"),
        (["a", "b", "c", "d"], "rank 0 has 'no further line' where rank 2 has 'd'"),
    ],
)
def test_the_error_contains_the_first_difference(theirs: list[str], message: str) -> None:
    ours = ["a", "b", "c"]
    with pytest.raises(RanksDisagreeError, match=message):
        require_equal([ours, list(ours), theirs])
