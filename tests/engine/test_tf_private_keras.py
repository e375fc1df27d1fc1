"""Private names of Keras 3."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.processes import session, two_replicas_here

from ray_estimator._tf_private import distribute
from ray_estimator._tf_private import keras as private

v1 = tf.compat.v1


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    """A new graph for each test."""
    with tf.Graph().as_default() as graph:
        yield graph


@pytest.fixture
def two_replicas() -> tf.distribute.Strategy:
    return two_replicas_here()


def test_keras_3_is_the_package_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert private.keras_3() is keras
    monkeypatch.delitem(sys.modules, "keras")
    assert private.keras_3() is None


def in_another_thread(call: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def test_seeding_keras_fixes_weights_and_seeds_and_restores_pythons_random() -> None:
    import random

    def drawn(seed: int | None) -> list[Any]:
        with private.seeding_keras(seed):
            kernel = keras.initializers.GlorotUniform()([3, 3])
            state = keras.random.SeedGenerator().state
        with session() as opened:
            return [opened.run(kernel).tolist(), opened.run(state.value).tolist()]

    random.seed(1)
    expected = random.random()
    random.seed(1)
    first, again, other = drawn(4), drawn(4), drawn(5)
    assert random.random() == expected
    assert first == again
    assert all(mine != others for mine, others in zip(first, other, strict=True))
    assert drawn(None) != drawn(None)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("summed", [False, True], ids=["mean", "sum"])
def test_averaging_keras_gradients_makes_keras_optimizers_average(
    two_replicas: tf.distribute.Strategy, sparse: bool, summed: bool
) -> None:
    with two_replicas.scope():
        weight = keras.Variable(np.zeros([2, 1], np.float32))
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build([weight])

    def replica() -> None:
        number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32) + 1.0
        row = number * tf.ones([1, 1])
        gradient = tf.IndexedSlices(row, tf.constant([0]), tf.constant([2, 1])) if sparse else tf.repeat(row, 2, 0)
        reduction = v1.losses.Reduction.SUM if summed else v1.losses.Reduction.MEAN
        v1.losses.mean_squared_error(row, row, reduction=reduction)
        optimizer.apply_gradients([(gradient, weight)])

    graph = v1.get_default_graph()
    before = len(graph.get_operations())
    with (
        two_replicas.scope(),
        distribute.averaging_v1_gradients(two_replicas),
        private.averaging_keras_gradients(2),
    ):
        two_replicas.extended.call_for_each_replica(replica)
    writes = [op for op in graph.get_operations()[before:] if op.type.startswith(("Assign", "ResourceScatter"))]
    with session() as opened:
        opened.run(writes)
        after = opened.run(two_replicas.extended.read_var(weight.value))
    step = -3.0 if summed else -1.5
    assert after.tolist() == [[step], [0.0 if sparse else step]]


def test_averaging_keras_gradients_is_undone_after_an_error() -> None:
    from keras.src.backend.tensorflow.optimizer import TFOptimizer

    default = TFOptimizer._all_reduce_sum_gradients

    def failing() -> None:
        with private.averaging_keras_gradients(2):
            assert TFOptimizer._all_reduce_sum_gradients is not default
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert TFOptimizer._all_reduce_sum_gradients is default
    with private.averaging_keras_gradients(1):
        assert TFOptimizer._all_reduce_sum_gradients is default


def test_keras_in_graph_names_variables_by_their_keras_path() -> None:
    def built() -> list[tuple[str, str]]:
        shared, other = keras.layers.Dense(1, name="one"), keras.layers.Dense(1, name="one_1")
        for _ in range(3):
            shared(tf.ones([1, 1]))
        with tf.name_scope("tower"):
            other(tf.ones([1, 1]))
        return [(variable.value.name, variable.path) for layer in (shared, other) for variable in layer.variables]

    with private.keras_in_graph():
        names = built()
        of_other_thread = in_another_thread(_built_in_another_graph)
    assert names == [
        ("one/kernel:0", "one/kernel"),
        ("one/bias:0", "one/bias"),
        ("tower/one_1/kernel:0", "one_1/kernel"),
        ("tower/one_1/bias:0", "one_1/bias"),
    ]
    assert of_other_thread == _built_in_another_graph() == "one_1_1/kernel:0"


def _built_in_another_graph() -> str:
    with tf.Graph().as_default():
        shared, other = keras.layers.Dense(1, name="one"), keras.layers.Dense(1, name="one_1")
        other(shared(tf.ones([1, 1])))
        return str(other.kernel.value.name)


def accumulating(variable: Any) -> None:
    keras.optimizers.SGD(gradient_accumulation_steps=2).apply_gradients([(tf.constant(1.0), variable)])


def overwriting(variable: Any) -> None:
    optimizer = keras.optimizers.SGD(use_ema=True, ema_overwrite_frequency=2)
    optimizer.apply_gradients([(tf.constant(1.0), variable)])


def scaling(variable: Any) -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    optimizer.apply_gradients([(v1.placeholder(tf.float32, []), variable)])


@pytest.mark.parametrize(
    ("train", "names"),
    [
        (accumulating, "gradient_accumulation_steps of a Keras optimizer in a graph must be None, got 2"),
        (overwriting, "ema_overwrite_frequency of a Keras optimizer in a graph must be None, got 2"),
        (scaling, "LossScaleOptimizer"),
    ],
)
def test_keras_in_graph_rejects_updates_that_would_never_run(train: Callable[[Any], None], names: str) -> None:
    variable = keras.Variable(1.0)
    with private.keras_in_graph(), pytest.raises(ValueError, match=names):
        train(variable)


def test_keras_in_graph_allows_updates_in_a_tf_function() -> None:
    variable = keras.Variable(1.0)
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build([variable])

    @tf.function  # type: ignore[untyped-decorator]
    def step() -> Any:
        optimizer.apply_gradients([(tf.constant(1.0), variable)])
        return variable.value + 0.0

    with private.keras_in_graph():
        trained = step()
    with session() as opened:
        assert [opened.run(trained) for _ in range(2)] == [0.5, 0.0]


def test_created_by_keras_distinguishes_keras_variables_from_others() -> None:
    seen = {}

    def creator(next_creator: Any, **kwargs: Any) -> Any:
        variable = next_creator(**kwargs)
        seen[variable.op.name] = private.created_by_keras()
        return variable

    class Layer(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.inner = self.add_weight(name="inner")

        def call(self, inputs: Any) -> Any:
            return inputs * self.inner

    with tf.variable_creator_scope(creator):
        Layer(name="layer")(tf.ones([1, 1]))
        keras.layers.LSTM(2, dropout=0.5, name="lstm")(tf.ones([1, 2, 3]), training=True)
        keras.Sequential([keras.layers.Dense(1, name="dense")], name="nested")(tf.ones([1, 1]))
        keras.Variable(1.0, name="alone")
        v1.get_variable("mine", [])
        tf.Variable(1.0, name="also_mine")
    mine = {name for name, by_keras in seen.items() if not by_keras}
    assert mine == {"mine", "also_mine"}
    assert len(seen) == 2 + 1 + 4 + 2 + 1


def test_is_keras_variable() -> None:
    variable = keras.Variable(1.0)
    assert private.is_keras_variable(variable)
    assert private.is_keras_variable(keras.optimizers.SGD().iterations)
    assert not private.is_keras_variable(variable.value)
    assert not private.is_keras_variable(tf.no_op())
