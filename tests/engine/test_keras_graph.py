"""The order in which `KerasState` runs the reads and writes of Keras variables."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ray_estimator._engine.graph.keras import KerasState, writes_of
from ray_estimator._engine.graph.traversal import ancestors

v1 = tf.compat.v1


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    """A new graph for each test."""
    with tf.Graph().as_default() as graph:
        yield graph


def ordered(build: Callable[[], Any]) -> tuple[Any, list[tf.Operation]]:
    """The result of `build`, and the ordered writes to Keras variables in it."""
    state = KerasState()
    with state.recording():
        built = build()
    return built, state.order()


def runs_before(earlier: tf.Operation, later: tf.Operation) -> bool:
    return earlier is not later and earlier in ancestors([later])


def session() -> v1.Session:
    opened = v1.Session()
    opened.run(v1.global_variables_initializer())
    return opened


def test_reads_and_writes_run_in_creation_order() -> None:
    def build() -> tuple[tf.Operation, tf.Operation]:
        variable = keras.Variable(1.0)
        before = tf.identity(variable.value, name="before")
        variable.assign(5.0)
        return before, tf.identity(variable.value, name="after")

    (before, after), (write,) = ordered(build)
    assert runs_before(before.op.inputs[0].op, write)
    assert runs_before(write, after.op)
    with session() as opened:
        assert opened.run([before, after, write])[:2] == [1.0, 5.0]


def test_writes_run_in_creation_order() -> None:
    def build() -> Any:
        variable = keras.Variable(1.0)
        variable.assign(variable * 2)
        variable.assign_add(3.0)
        variable.assign(variable * 10)
        return variable

    variable, writes = ordered(build)
    assert len(writes) == 3
    assert all(runs_before(early, late) for early, late in itertools.pairwise(writes))
    with session() as opened:
        opened.run(writes)
        assert opened.run(variable.value) == 50.0


def test_operations_on_different_variables_are_not_ordered() -> None:
    def build() -> None:
        first, second = keras.Variable(1.0), keras.Variable(1.0)
        first.assign(2.0)
        second.assign(2.0)

    _, (first, second) = ordered(build)
    assert not runs_before(first, second)
    assert not runs_before(second, first)


def test_initializers_are_not_ordered(graph: tf.Graph) -> None:
    def build() -> Any:
        variable = keras.Variable(keras.initializers.RandomNormal(seed=1), shape=[2])
        variable.assign_add([1.0, 1.0])
        return variable

    variable, writes = ordered(build)
    initializer = variable.value.initializer
    assert initializer not in writes
    assert len(writes) == 1
    assert list(initializer.control_inputs) == []
    assert initializer not in ancestors(writes)


def test_operations_created_before_model_fn_are_not_ordered() -> None:
    shared = keras.Variable(1.0)
    shared.assign(2.0)
    _, writes = ordered(lambda: keras.Variable(1.0).assign(3.0))
    assert len(writes) == 1


def test_variables_not_created_by_keras_are_not_ordered(graph: tf.Graph) -> None:
    def build() -> None:
        v1.get_variable("mine", []).assign(1.0)
        tf.Variable(2.0).assign(3.0)

    _, writes = ordered(build)
    assert writes == []
    assert not any(op.control_inputs for op in graph.get_operations() if op.type == "AssignVariableOp")


def test_two_dropouts_advance_a_shared_seed_twice(graph: tf.Graph) -> None:
    def build() -> tuple[tf.Tensor, tf.Tensor]:
        shared = keras.random.SeedGenerator(3)
        ones = tf.ones([64])
        masks = [keras.random.dropout(ones, 0.5, seed=shared) for _ in range(2)]
        return masks[0], masks[1]

    (first, second), writes = ordered(build)
    assert len(writes) == 2
    assert runs_before(*writes)
    with session() as opened:
        masks = [mask.tobytes() for _ in range(2) for mask in opened.run([first, second, *writes])[:2]]
    assert len(set(masks)) == 4


def test_dropout_layers_have_separate_seeds() -> None:
    def build() -> list[tf.Tensor]:
        ones = tf.ones([8, 64])
        return [keras.layers.Dropout(0.5)(ones, training=True) for _ in range(2)]

    masks, writes = ordered(build)
    assert len(writes) == 2
    assert not runs_before(*writes)
    with session() as opened:
        seen = {mask.tobytes() for _ in range(3) for mask in opened.run([*masks, *writes])[:2]}
    assert len(seen) == 6


def test_the_while_of_an_lstm_is_ordered_like_a_write_but_not_returned(graph: tf.Graph) -> None:
    def build() -> Any:
        lstm = keras.layers.LSTM(2)
        output = lstm(tf.ones([1, 3, 2]))
        for variable in lstm.trainable_variables:
            variable.assign(tf.zeros(variable.shape))
        return output, lstm(tf.ones([1, 3, 2]))

    (first, second), writes = ordered(build)
    loops = [op for op in graph.get_operations() if op.type in {"While", "StatelessWhile"}]
    assert len(loops) == 2
    assert [op.type for op in writes] == ["AssignVariableOp"] * 3
    assert all(runs_before(loops[0], write) and runs_before(write, loops[1]) for write in writes)
    with session() as opened:
        before, after, *_ = opened.run([first, second, *writes])
    assert np.abs(before).max() > 0
    assert np.abs(after).max() == 0


def test_a_gather_is_a_read_and_a_scatter_is_a_write() -> None:
    def build() -> tuple[tf.Tensor, tf.Tensor]:
        table = keras.Variable(np.ones([3, 1], np.float32))
        before = tf.gather(table.value, [1])
        table.value.scatter_add(tf.IndexedSlices(tf.ones([1, 1]), tf.constant([1])))
        return before, tf.gather(table.value, [1])

    (before, after), writes = ordered(build)
    assert [op.type for op in writes] == ["ResourceScatterAdd"]
    with session() as opened:
        assert opened.run([before, after, *writes])[:2] == [[[1.0]], [[2.0]]]


def test_an_adam_step_runs_once_in_order() -> None:
    def build() -> Any:
        weight = keras.Variable([1.0, 2.0])
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.apply_gradients([(tf.constant([0.5, -1.0]), weight)])
        return weight, optimizer

    (weight, optimizer), writes = ordered(build)
    with session() as opened:
        for _ in range(3):
            opened.run(writes)
        value, count = opened.run([weight.value, optimizer.iterations.value])
    # With a constant gradient each bias-corrected step equals the learning rate.
    np.testing.assert_allclose(value, [1 - 0.3, 2 + 0.3], rtol=1e-5)
    assert count == 3


@pytest.fixture(params=["v1", "v2"])
def control_flow(request: pytest.FixtureRequest) -> Iterator[None]:
    """Control flow v1, which `disable_v2_behavior` selects, and v2."""
    enabled = v1.control_flow_v2_enabled()
    (v1.enable_control_flow_v2 if request.param == "v2" else v1.disable_control_flow_v2)()
    yield
    (v1.enable_control_flow_v2 if enabled else v1.disable_control_flow_v2)()


@pytest.mark.usefixtures("control_flow")
def test_loops_and_branches_read_values_written_before_them() -> None:
    def build() -> Any:
        variable = keras.Variable(2.0)
        slow = tf.linalg.trace(tf.linalg.expm(tf.zeros([60, 60]))) / 60  # 1.0, computed slowly
        variable.assign(variable * 3.0 * slow)
        chosen = v1.placeholder_with_default(True, [])
        branch = tf.cond(chosen, lambda: variable.value * 10.0, lambda: variable.value * 0.0)
        loop = tf.while_loop(lambda step, _: step < 3, lambda step, sum: (step + 1, sum + variable.value), (0, 0.0))
        return branch, loop[1]

    (branch, total), writes = ordered(build)
    with session() as opened:
        _, seen, summed = opened.run([writes, branch, total])
    assert (seen, summed) == pytest.approx((60.0, 18.0))


@pytest.mark.usefixtures("control_flow")
def test_a_loop_or_branch_keeps_the_order_of_the_writes_around_it() -> None:
    def build() -> Any:
        variable = keras.Variable(2.0)
        before = tf.identity(variable.value)
        variable.assign(5.0)
        chosen = v1.placeholder_with_default(True, [])
        branch = tf.cond(chosen, lambda: variable.value * 3.0, lambda: variable.value * 0.0)
        loop = tf.while_loop(lambda step: step < variable.value, lambda step: step + 1.0, (0.0,))
        variable.assign_add(branch)
        return variable, before, loop

    (variable, before, steps), writes = ordered(build)
    assert len(writes) == 2
    assert runs_before(before.op.inputs[0].op, writes[0])
    assert runs_before(*writes)
    with session() as opened:
        assert opened.run([before, writes, steps])[0] == 2.0
        assert opened.run(variable.value) == 20.0


def test_variables_created_in_a_function_belong_to_the_outer_graph(graph: tf.Graph) -> None:
    """Keras creates them in `init_scope`."""
    made: list[Any] = []

    def body(step: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if not made:
            made.append(keras.layers.Dense(1, kernel_initializer="ones", name="inner"))
        return step + 1, total + made[0](tf.ones([1, 2]))

    def build() -> tf.Tensor:
        total = tf.while_loop(lambda step, _: step < 3, body, (0, tf.zeros([1, 1])))[1]
        made[0].kernel.assign(tf.zeros([2, 1]))
        return total

    total, writes = ordered(build)
    assert [variable.value.name for variable in made[0].variables] == ["inner/kernel:0", "inner/bias:0"]
    assert [op.graph for op in writes] == [graph]
    with session() as opened:
        assert opened.run([total, *writes])[0] == 6.0


def test_writes_of_returns_the_writes_of_the_given_variables() -> None:
    def build() -> Any:
        mean, total = keras.metrics.Mean(), keras.metrics.Sum()
        mean.update_state([1.0, 3.0])
        total.update_state([1.0, 3.0])
        return mean, total

    (mean, total), writes = ordered(build)
    assert len(writes) == 3
    of_mean = writes_of([variable.value for variable in mean.variables], writes)
    of_total = writes_of([variable.value for variable in total.variables], writes)
    assert (len(of_mean), len(of_total)) == (2, 1)
    assert {*of_mean, *of_total} == set(writes)


def test_keras_variables_of_another_thread_are_not_recorded() -> None:
    state = KerasState()
    with state.recording():

        def build() -> None:
            with tf.Graph().as_default():
                keras.layers.Dense(1)(tf.ones([1, 1]))

        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    assert state.variables == []
    assert state.order() == []
