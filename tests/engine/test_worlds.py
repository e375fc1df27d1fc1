"""Both worlds of model_fn, and the legacy one, in this process: what a checkpoint holds, and what a step does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.worlds import NUM_ROWS, endless_input_fn, keras_model_fn, one_pass_input_fn, v1_model_fn

from ray_estimator import Estimator, EstimatorSpec, ModeKeys
from ray_estimator._engine.graph.traversal import ancestors

v1 = tf.compat.v1

SEEDS = ("seed_generator/seed_generator_state", "seed_generator_1/seed_generator_state")
MOVING = ("batch_normalization/moving_mean", "batch_normalization/moving_variance")

WORLDS = [
    pytest.param(v1_model_fn, {"optimizer": "momentum"}, id="v1-momentum"),
    pytest.param(v1_model_fn, {"optimizer": "adam"}, id="v1-adam"),
    pytest.param(keras_model_fn, {"optimizer": "adam"}, id="keras-adam"),
    pytest.param(keras_model_fn, {"optimizer": "sgd"}, id="keras-sgd"),
]
TWO_WORLDS = [WORLDS[1], WORLDS[2]]


class Fetch(v1.train.SessionRunHook):
    """Fetches tensors by name in every step, and remembers them."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self.steps: list[dict[str, Any]] = []

    def before_run(self, run_context: Any) -> Any:
        return v1.train.SessionRunArgs({name: f"{name}:0" for name in self._names})

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self.steps.append(run_values.results)

    def values(self, name: str) -> list[Any]:
        return [step[name] for step in self.steps]


class Losses(v1.train.SessionRunHook):
    """Remembers the loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def before_run(self, run_context: Any) -> Any:
        (loss,) = v1.get_collection(v1.GraphKeys.LOSSES)
        return v1.train.SessionRunArgs(loss)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self.seen.append(float(run_values.results))


def checkpoint_of(estimator: Estimator) -> dict[str, Any]:
    return {name: estimator.get_variable_value(name) for name in estimator.get_variable_names()}


def probabilities(estimator: Estimator) -> np.ndarray:
    return np.stack([row["probability"] for row in estimator.predict(one_pass_input_fn)])


@pytest.mark.parametrize(("model_fn", "params"), WORLDS)
def test_the_loss_falls_and_eval_restores_what_train_saved(
    in_process: Callable[..., Any], model_fn: Any, params: Any
) -> None:
    estimator = in_process(model_fn, params=params, tf_random_seed=1)
    losses = Losses()
    estimator.train(endless_input_fn, steps=100, hooks=[losses])
    assert len(losses.seen) == 100
    assert np.mean(losses.seen[-10:]) < 0.5 * np.mean(losses.seen[:5])

    result = estimator.evaluate(one_pass_input_fn)
    assert result["global_step"] == 100
    assert result["accuracy"] > 0.85
    assert result["auc"] > 0.95
    bias = estimator.get_variable_value("logits/bias" if model_fn is v1_model_fn else "dense_1/bias")
    assert bias != 0
    assert float(np.squeeze(result["bias"])) == pytest.approx(float(bias[0]), rel=1e-6)

    predicted = probabilities(estimator)
    assert predicted.shape == (NUM_ROWS, 1)


@pytest.mark.parametrize(("model_fn", "params"), WORLDS)
def test_global_step_counts_exactly_the_steps(in_process: Callable[..., Any], model_fn: Any, params: Any) -> None:
    estimator = in_process(model_fn, params=params)
    estimator.train(endless_input_fn, steps=3)
    assert estimator.get_variable_value("global_step") == 3
    estimator.train(endless_input_fn, max_steps=7)
    assert estimator.get_variable_value("global_step") == 7
    if model_fn is keras_model_fn:
        assert estimator.get_variable_value(f"{params['optimizer']}/iteration") == 7


@pytest.mark.parametrize(("model_fn", "params"), TWO_WORLDS)
def test_predict_after_a_restart_equals_predict_before(
    in_process: Callable[..., Any], model_fn: Any, params: Any
) -> None:
    estimator = in_process(model_fn, params=params)
    estimator.train(endless_input_fn, steps=5)
    before = probabilities(estimator)
    again = in_process(model_fn, params=params)
    assert again.model_dir == estimator.model_dir
    assert np.array_equal(probabilities(again), before)
    assert len(np.unique(before)) > NUM_ROWS // 2


@pytest.mark.parametrize(
    ("model_fn", "params"),
    [*WORLDS, pytest.param(keras_model_fn, {"optimizer": "adam", "dtype_policy": "mixed_bfloat16"}, id="keras-mixed")],
)
def test_training_in_two_calls_equals_training_in_one(
    in_process: Callable[..., Any], tmp_path: Path, model_fn: Any, params: Any
) -> None:
    """So slots, moving averages, seeds and the schedule's place are all restored."""

    def inputs(skip: int) -> Callable[[], tf.data.Dataset]:
        return lambda: endless_input_fn().skip(skip)

    once = in_process(model_fn, params=params, model_dir=tmp_path / "once", tf_random_seed=3)
    once.train(inputs(0), steps=8)
    twice = in_process(model_fn, params=params, model_dir=tmp_path / "twice", tf_random_seed=3)
    twice.train(inputs(0), steps=4)
    halfway = checkpoint_of(twice)
    twice.train(inputs(4), steps=4)

    expected, found = checkpoint_of(once), checkpoint_of(twice)
    assert set(found) == set(expected) == set(halfway)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        assert not np.array_equal(halfway[name], found[name]), f"{name} stood still"


@pytest.mark.parametrize(("model_fn", "params"), TWO_WORLDS)
def test_the_seed_of_the_config_fixes_the_weights(
    in_process: Callable[..., Any], tmp_path: Path, model_fn: Any, params: Any
) -> None:
    def trained(folder: str, seed: int) -> dict[str, Any]:
        estimator = in_process(model_fn, params=params, model_dir=tmp_path / folder, tf_random_seed=seed)
        estimator.train(endless_input_fn, steps=1)
        return checkpoint_of(estimator)

    first, same, other = trained("first", 5), trained("same", 5), trained("other", 6)
    assert all(np.allclose(first[name], same[name], rtol=1e-6, atol=1e-7) for name in first)
    if model_fn is keras_model_fn:
        assert not np.array_equal(first["dense/kernel"], other["dense/kernel"])


# Keras 3


def test_moving_averages_move_and_are_saved(in_process: Callable[..., Any]) -> None:
    estimator = in_process(keras_model_fn)
    estimator.train(endless_input_fn, steps=2)
    after_two = [estimator.get_variable_value(name) for name in MOVING]
    assert np.abs(after_two[0]).max() > 0
    assert np.abs(after_two[1] - 1).max() > 0
    estimator.train(endless_input_fn, steps=2)
    after_four = [estimator.get_variable_value(name) for name in MOVING]
    for before, after in zip(after_two, after_four, strict=True):
        assert not np.array_equal(before, after)


def test_a_moving_average_is_the_one_of_the_formula(in_process: Callable[..., Any]) -> None:
    """Each step moves it once, from the value of the step before."""

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        normalization = keras.layers.BatchNormalization(momentum=0.5)
        normalized = normalization(features["x"], training=True)
        loss = tf.reduce_mean(tf.square(keras.layers.Dense(1)(normalized) - labels))
        return EstimatorSpec(mode, loss=loss, train_op=tf.no_op())

    def constant_input_fn() -> Any:
        return tf.data.Dataset.from_tensors(({"x": [[1.0, 2.0], [3.0, 6.0]]}, [[0.0], [1.0]])).repeat()

    estimator = in_process(model_fn)
    estimator.train(constant_input_fn, steps=3)
    np.testing.assert_allclose(estimator.get_variable_value(MOVING[0]), np.array([2, 4]) * (1 - 0.5**3), rtol=1e-6)
    variance = 0.5**3 + np.array([1, 4]) * (1 - 0.5**3)
    np.testing.assert_allclose(estimator.get_variable_value(MOVING[1]), variance, rtol=1e-5)


def test_dropout_masks_differ_from_step_to_step_and_after_a_restart(in_process: Callable[..., Any]) -> None:
    estimator = in_process(keras_model_fn)
    masks = []
    for _ in range(2):
        hook = Fetch("kept")
        estimator.train(endless_input_fn, steps=3, hooks=[hook])
        masks += hook.values("kept")
    assert len({mask.tobytes() for mask in masks}) == 6
    assert 0.6 < np.mean(masks) < 0.9


def test_the_state_of_each_seed_advances_with_the_steps(in_process: Callable[..., Any]) -> None:
    estimator = in_process(keras_model_fn)
    states = []
    for _ in range(2):
        estimator.train(endless_input_fn, steps=2)
        states.append([estimator.get_variable_value(name) for name in SEEDS])
    for early, late in zip(*states, strict=True):
        assert early[0] == late[0]
        assert late[1] == 2 * early[1] > 0


def test_a_learning_rate_schedule_advances_with_the_iterations(in_process: Callable[..., Any]) -> None:
    estimator = in_process(keras_model_fn, params={"optimizer": "sgd"})
    rates = []
    for _ in range(2):
        hook = Fetch("next_learning_rate")
        estimator.train(endless_input_fn, steps=3, hooks=[hook])
        rates += hook.values("next_learning_rate")
    np.testing.assert_allclose(rates, [0.2 * 0.5 ** (step / 100) for step in range(1, 7)], rtol=1e-5)


def test_the_variables_of_a_model_have_the_same_names_in_every_mode(in_process: Callable[..., Any]) -> None:
    """Also where a mode calls a layer more often than another does, and under scopes of the user's own."""
    names: dict[str, list[str]] = {}

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        shared, *towers = (keras.layers.Dense(3) for _ in range(4))
        encoded = shared(features["x"])
        if mode == ModeKeys.TRAIN:
            for _ in range(3):
                encoded += shared(features["x"] + 0.1)
        for tower in towers[:2]:
            encoded += tower(encoded)
        with tf.name_scope("last"):
            encoded += towers[2](encoded)
        output = keras.layers.Dense(1, name="output")(encoded)
        layers = [variable.value.name for layer in (shared, *towers) for variable in layer.variables]
        names[mode] = layers
        loss = tf.constant(0.0) if labels is None else tf.reduce_mean(tf.square(output - labels))
        train_op = None
        if mode == ModeKeys.TRAIN:
            variables = [variable for layer in (shared, *towers) for variable in layer.variables]
            gradients = tf.gradients(loss, [variable.value for variable in variables])
            train_op = keras.optimizers.SGD(0.01).apply_gradients(zip(gradients, variables, strict=True))
        return EstimatorSpec(mode, {"output": output}, loss, train_op)

    estimator = in_process(model_fn)
    estimator.train(endless_input_fn, steps=2)
    estimator.evaluate(one_pass_input_fn)
    assert len(list(estimator.predict(one_pass_input_fn))) == NUM_ROWS
    assert names[ModeKeys.TRAIN] == names[ModeKeys.EVAL] == names[ModeKeys.PREDICT]
    scopes = ("dense", "dense_1", "dense_2", "last/dense_3")
    assert names[ModeKeys.TRAIN] == [f"{scope}/{name}:0" for scope in scopes for name in ("kernel", "bias")]


def test_the_callers_own_keras_is_left_alone(in_process: Callable[..., Any]) -> None:
    mine = keras.Sequential([keras.layers.Dense(2), keras.layers.BatchNormalization()])
    rows = np.ones([4, 3], np.float32)
    before = np.asarray(mine(rows))
    stem, number = keras.layers.Dense(1).name.rsplit("_", 1)
    policy = keras.config.dtype_policy().name

    estimator = in_process(keras_model_fn, params={"dtype_policy": "mixed_bfloat16"})
    estimator.train(endless_input_fn, steps=1)
    estimator.evaluate(one_pass_input_fn, steps=1)

    assert keras.layers.Dense(1).name == f"{stem}_{int(number) + 1}"
    assert np.array_equal(np.asarray(mine(rows)), before)
    assert keras.config.dtype_policy().name == policy


@pytest.fixture
def drivers_policy() -> Iterator[None]:
    """The driver's thread works in mixed_bfloat16."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


class DtypesOfHidden(v1.train.SessionRunHook):
    """Looks up in which dtypes the graph computes and keeps variables."""

    def begin(self) -> None:
        graph = v1.get_default_graph()
        self.matmuls = {op.outputs[0].dtype for op in graph.get_operations() if op.name.startswith("dense/MatMul")}
        self.kept = {variable.dtype for variable in v1.trainable_variables()}
        self.activations = tf.get_static_value(graph.get_tensor_by_name("activation_dtype:0")).item().decode()


def assert_computes_in_bfloat16(dtypes: DtypesOfHidden) -> None:
    assert dtypes.activations == "bfloat16"
    assert dtypes.matmuls == {tf.bfloat16}
    assert {dtype.base_dtype for dtype in dtypes.kept} == {tf.float32}


def test_mixed_precision_set_in_model_fn(in_process: Callable[..., Any]) -> None:
    dtypes = DtypesOfHidden()
    estimator = in_process(keras_model_fn, params={"dtype_policy": "mixed_bfloat16"})
    estimator.train(endless_input_fn, steps=40, hooks=[dtypes])
    assert_computes_in_bfloat16(dtypes)
    assert estimator.evaluate(one_pass_input_fn)["accuracy"] > 0.8


@pytest.mark.usefixtures("drivers_policy")
def test_mixed_precision_set_by_the_driver(in_process: Callable[..., Any]) -> None:
    dtypes = DtypesOfHidden()
    in_process(keras_model_fn).train(endless_input_fn, steps=1, hooks=[dtypes])
    assert_computes_in_bfloat16(dtypes)


def test_without_a_policy_it_computes_in_float32(in_process: Callable[..., Any]) -> None:
    dtypes = DtypesOfHidden()
    in_process(keras_model_fn).train(endless_input_fn, steps=1, hooks=[dtypes])
    assert dtypes.activations == "float32"
    assert dtypes.matmuls == {tf.float32}


def test_two_keras_optimizers_take_turns_in_one_step(in_process: Callable[..., Any]) -> None:
    """A GAN's shape: the second optimizer sees what the first one did, in the order in which model_fn says so."""

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        first = keras.Variable(1.0, name="first")
        second = keras.Variable(1.0, name="second")
        loss = tf.square(first.value * 1.0)
        (gradient,) = tf.gradients(loss, [first.value])
        keras.optimizers.SGD(0.25, name="one").apply_gradients([(gradient, first)])
        other = second.value * first.value  # reads what the first optimizer wrote
        (gradient,) = tf.gradients(other, [second.value])
        train_op = keras.optimizers.SGD(1.0, name="two").apply_gradients([(gradient, second)])
        return EstimatorSpec(mode, loss=loss + 0.0 * tf.reduce_mean(features["x"]), train_op=train_op)

    estimator = in_process(model_fn)
    estimator.train(endless_input_fn, steps=2)
    values = checkpoint_of(estimator)
    # first: 1 -> 1/2 -> 1/4; second: 1 - 1/2 - 1/4.
    assert values["first"] == pytest.approx(0.25)
    assert values["second"] == pytest.approx(0.25)
    assert values["one/iteration"] == values["two/iteration"] == values["global_step"] == 2


# TF1 style


def test_a_pure_v1_model_is_run_as_it_is(in_process: Callable[..., Any]) -> None:
    """No write runs that its train_op does not run, and what model_fn built is not put into another order."""
    built = {}

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        forgotten = v1.get_variable("forgotten", [], initializer=v1.zeros_initializer())
        v1.assign_add(forgotten, 1.0)
        weight = v1.get_variable("weight", [4, 1])
        loss = tf.reduce_mean(tf.square(features["x"] @ weight - labels))
        train_op = v1.train.AdamOptimizer().minimize(loss, global_step=v1.train.get_global_step())
        built["edges"] = {op: list(op.control_inputs) for op in v1.get_default_graph().get_operations()}
        built["train_op"] = train_op
        return EstimatorSpec(mode, loss=loss, train_op=train_op)

    class Compare(v1.train.SessionRunHook):
        def before_run(self, run_context: Any) -> None:
            fetches = tf.nest.flatten(run_context.original_args.fetches)
            targets = [fetch if isinstance(fetch, tf.Operation) else fetch.op for fetch in fetches]
            assert _writes(ancestors(targets)) == _writes(ancestors([built["train_op"]])) != set()
            changed = [op for op, edges in built["edges"].items() if list(op.control_inputs) != edges]
            # Hooks read the global step before the step moves it; the iterator is not model_fn's own.
            moved = {op.inputs[0].name for op in changed if op.type != "IteratorGetNext"}
            assert moved <= {v1.train.get_global_step().handle.name}

    estimator = in_process(model_fn)
    estimator.train(endless_input_fn, steps=3, hooks=[Compare()])
    assert estimator.get_variable_value("forgotten") == 0


def _writes(operations: set[tf.Operation]) -> set[str]:
    return {op.name for op in operations if op.type.startswith(("Assign", "ResourceApply", "ResourceScatter"))}


def test_a_v1_optimizer_trains_keras_layers(in_process: Callable[..., Any]) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        hidden = keras.layers.BatchNormalization()(features["x"], training=mode == ModeKeys.TRAIN)
        logits = keras.layers.Dense(1)(keras.layers.Dropout(0.1)(hidden, training=mode == ModeKeys.TRAIN))
        loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))
        train_op = v1.train.AdamOptimizer(0.05).minimize(loss, global_step=v1.train.get_global_step())
        return EstimatorSpec(mode, loss=loss, train_op=train_op)

    estimator = in_process(model_fn, tf_random_seed=1)
    losses = Losses()
    estimator.train(endless_input_fn, steps=60, hooks=[losses])
    assert np.mean(losses.seen[-10:]) < 0.8 * np.mean(losses.seen[:5])
    assert estimator.get_variable_value("global_step") == 60
    assert np.abs(estimator.get_variable_value(MOVING[0])).max() > 0
    estimator.evaluate(one_pass_input_fn)


# Legacy


def test_the_legacy_world_in_a_process_of_its_own(tmp_path: Path) -> None:
    script = Path(__file__).parent / "legacy_script.py"
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": str(script.parents[1])}
    ended = subprocess.run(
        [sys.executable, script, tmp_path / "model"], env=environment, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "the legacy world works" in ended.stdout


def test_legacy_keras_in_a_process_with_keras_3_is_refused(
    in_process: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    estimator = in_process(v1_model_fn)
    estimator.train(endless_input_fn, steps=1)
    legacy = in_process(v1_model_fn, legacy_keras=True)
    for verb in (
        lambda: legacy.train(endless_input_fn, steps=1),
        lambda: legacy.evaluate(one_pass_input_fn),
        lambda: next(legacy.predict(one_pass_input_fn)),
    ):
        with pytest.raises(ValueError, match=r"TF_USE_LEGACY_KERAS.*before TensorFlow is imported.*os\.environ"):
            verb()


def test_a_global_step_that_model_fn_counts_in_a_branch_is_not_counted_twice(in_process: Callable[..., Any]) -> None:
    def every_other_step(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
        calls = v1.get_variable("calls", [], tf.int64, initializer=v1.zeros_initializer(), trainable=False)
        step = v1.train.get_global_step()
        with tf.control_dependencies([v1.assign_add(calls, 1)]):
            is_second = tf.equal(calls.read_value() % 2, 0)
        count = tf.cond(is_second, lambda: tf.identity(v1.assign_add(step, 1)), lambda: tf.identity(step))
        return EstimatorSpec(mode, loss=tf.square(weight), train_op=count.op)

    estimator = in_process(every_other_step)
    estimator.train(lambda: tf.data.Dataset.from_tensors((0.0, 0.0)).repeat(), max_steps=5)
    assert estimator.get_variable_value("calls") == 10
    assert estimator.get_variable_value("global_step") == 5
