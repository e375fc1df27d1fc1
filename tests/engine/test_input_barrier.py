"""A step without a batch writes no variable, and tensors that depend on the input are recognized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator import EstimatorSpec
from ray_estimator._engine.graph.input_barrier import depends_on_input, write_after_input
from ray_estimator._engine.graph.operations import written_by
from ray_estimator._engine.graph.traversal import ancestors

Make = Callable[..., Any]
NUM_BATCHES = 3


@pytest.fixture
def graph() -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as graph:
        yield graph


def next_of(dataset: tf.data.Dataset) -> tf.Tensor:
    return v1.data.make_one_shot_iterator(dataset).get_next()


def counter(name: str, use_resource: bool = True) -> tf.Variable:
    return v1.get_variable(name, [], initializer=v1.zeros_initializer(), use_resource=use_resource)


def waits(op: tf.Operation) -> bool:
    return any(earlier.type.startswith("IteratorGetNext") for earlier in ancestors([op]))


# In a graph


@pytest.mark.parametrize("use_resource", [True, False])
def test_writes_wait_for_the_batch(graph: tf.Graph, use_resource: bool) -> None:
    batch = next_of(tf.data.Dataset.range(NUM_BATCHES))
    free, bound = counter("free", use_resource), counter("bound", use_resource)
    free_write, bound_write = v1.assign_add(free, 1.0), v1.assign_add(bound, tf.cast(batch, tf.float32))
    edges = list(bound_write.op.control_inputs)

    write_after_input(tf.group(free_write, bound_write))

    writers = [op for op in ancestors([free_write.op]) if op.type in ("AssignAddVariableOp", "AssignAdd")]
    assert len(writers) == 1
    assert waits(writers[0])
    assert bound_write.op.control_inputs == edges


def test_reads_do_not_wait(graph: tf.Graph) -> None:
    batch = next_of(tf.data.Dataset.range(NUM_BATCHES))
    read = counter("free").read_value()

    write_after_input(tf.group(read, batch))

    assert not waits(read.op)


def test_predecessors_of_the_input_do_not_wait_for_it(graph: tf.Graph) -> None:
    queue = v1.FIFOQueue(3, tf.float32, shapes=[[]])
    seen = v1.assign_add(counter("seen"), 1.0)
    with tf.control_dependencies([seen]):
        fill = queue.enqueue(1.0)
    with tf.control_dependencies([fill]):
        batch = queue.dequeue()
    step = tf.group(batch, v1.assign_add(counter("after"), 1.0))

    write_after_input(step)

    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        for _ in range(2):
            session.run(step)
        assert session.run(v1.global_variables()) == [2.0, 2.0]


def test_a_step_without_input_does_not_change(graph: tf.Graph) -> None:
    count = v1.assign_add(counter("count"), 1.0)
    edges = list(count.op.control_inputs)

    write_after_input(tf.group(count))

    assert count.op.control_inputs == edges


def test_a_branch_with_a_write_counts_as_a_write(graph: tf.Graph) -> None:
    written, read = counter("written"), counter("read")
    toggle = v1.placeholder_with_default(True, [])
    branch = tf.cond(toggle, lambda: tf.identity(v1.assign_add(written, read)), lambda: tf.zeros([]))
    (conditional,) = [op for op in ancestors([branch.op]) if op.type == "If"]

    assert [tensor.name for tensor in written_by(conditional)] == [written.handle.name]


def test_depends_on_input_follows_captures_of_branches(graph: tf.Graph) -> None:
    batch = next_of(tf.data.Dataset.range(NUM_BATCHES))
    free = counter("free").read_value()
    answers = []

    def branch() -> tf.Tensor:
        answers.extend([depends_on_input(tf.cast(batch, tf.float32) + 1.0), depends_on_input(free + 1.0)])
        return free

    tf.cond(v1.placeholder_with_default(True, []), branch, lambda: free)

    assert answers == [True, False]
    assert depends_on_input(batch * 2)
    assert not depends_on_input(free)


# In train and evaluate


def counting_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    """Count steps in several ways that do not depend on the batch."""
    weight = v1.get_variable("weight", [], initializer=v1.ones_initializer())
    steps = v1.get_variable("steps", [], tf.int32, v1.zeros_initializer(), trainable=False)
    step = v1.train.get_global_step()
    descend = v1.train.GradientDescentOptimizer(0.1).minimize(weight)
    batches = v1.get_local_variable("batches", initializer=0, collections=[v1.GraphKeys.METRIC_VARIABLES])
    metrics = {"batches": (batches.read_value(), v1.assign_add(batches, 1))}
    train_op = tf.group(descend, v1.assign_add(steps, 1), step.assign(step + 1))
    return EstimatorSpec(mode, loss=weight, train_op=train_op, eval_metric_ops=metrics)


def queue_input_fn() -> Any:
    row = v1.train.limit_epochs(tf.constant(1.0), num_epochs=NUM_BATCHES)
    return v1.train.batch([row], batch_size=1), tf.constant(0.0)


@pytest.mark.parametrize(
    "input_fn",
    [
        lambda: tf.data.Dataset.from_tensors((1.0, 0.0)).repeat(NUM_BATCHES),
        lambda: (next_of(tf.data.Dataset.from_tensors(1.0).repeat(NUM_BATCHES)), tf.constant(0.0)),
        queue_input_fn,
    ],
    ids=["dataset", "iterator", "queue"],
)
def test_training_writes_once_per_batch(in_process: Make, input_fn: Any) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        spec = counting_model_fn(features, labels, mode)
        return spec._replace(train_op=tf.group(spec.train_op, features))

    estimator = in_process(model_fn).train(input_fn)

    for name in ("global_step", "steps"):
        assert estimator.get_variable_value(name) == NUM_BATCHES
    assert estimator.get_variable_value("weight") == pytest.approx(1 - 0.1 * NUM_BATCHES)


def test_metric_updates_write_once_per_batch(in_process: Make) -> None:
    estimator = in_process(counting_model_fn)

    result = estimator.evaluate(
        lambda: tf.data.Dataset.from_tensors((1.0, 0.0)).repeat(NUM_BATCHES), allow_untrained=True
    )

    assert (result["batches"], result["loss"]) == (NUM_BATCHES, 1.0)
