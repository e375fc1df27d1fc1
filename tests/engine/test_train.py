"""Estimator.train in this process: arguments, steps, the end of a run.

Hooks, logs and summaries are in test_train_hooks.py, checkpoints and warm start in test_train_checkpoints.py.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import ray
import tensorflow as tf
import tensorflow.compat.v1 as v1
from ray.train import ScalingConfig
from support.models import NUM_ROWS, X, endless_input_fn, linear_model_fn, one_pass_input_fn
from support.recording import RecordingHook, saved_steps, with_spec

from ray_estimator import Estimator, EstimatorSpec, RunConfig, ShippingError

Make = Callable[..., Any]

STEPS_OF_ONE_PASS = NUM_ROWS // 32


def step_of(estimator: Any) -> int:
    return int(estimator.get_variable_value("global_step"))


def empty_input_fn() -> tf.data.Dataset:
    return endless_input_fn().take(0)


# 1


def test_a4_1_steps_and_max_steps_exclude_each_other(in_process: Make) -> None:
    with pytest.raises(ValueError, match="Can not provide both steps and max_steps"):
        in_process(linear_model_fn).train(endless_input_fn, steps=1, max_steps=1)


@pytest.mark.parametrize("name", ["steps", "max_steps"])
@pytest.mark.parametrize("value", [0, -1])
def test_a4_1_steps_must_be_positive(in_process: Make, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"Must specify {name} > 0, got {value}"):
        in_process(linear_model_fn).train(endless_input_fn, **{name: value})


@pytest.mark.parametrize("name", ["steps", "max_steps"])
def test_a4_1_steps_may_be_an_integer_of_numpy(in_process: Make, name: str) -> None:
    estimator = in_process(linear_model_fn, params={}).train(endless_input_fn, **{name: np.int64(3)})

    assert step_of(estimator) == 3


# 2


def test_a4_2_steps_are_incremental(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={})

    estimator.train(endless_input_fn, steps=10)
    assert step_of(estimator) == 10
    estimator.train(endless_input_fn, steps=10)
    assert step_of(estimator) == 20


def test_a4_2_max_steps_is_absolute(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}).train(endless_input_fn, steps=4)

    estimator.train(endless_input_fn, max_steps=10)

    assert step_of(estimator) == 10


@pytest.mark.parametrize("max_steps", [4, 5])
def test_a4_2_max_steps_that_are_reached_do_nothing(
    in_process: Make, max_steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    built = []

    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        built.append(mode)
        return linear_model_fn(features, labels, mode, params)

    estimator = in_process(model_fn, params={}).train(endless_input_fn, steps=5)
    built.clear()
    before = contents_of(estimator.model_dir)

    with caplog.at_level(logging.INFO):
        assert estimator.train(endless_input_fn, max_steps=max_steps) is estimator

    assert "Skipping training since max_steps has already saved." in caplog.messages
    assert built == []
    assert contents_of(estimator.model_dir) == before


def test_a4_2_max_steps_that_are_reached_start_no_workers(in_process: Make) -> None:
    lock = threading.Lock()  # does not travel

    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        with lock:
            return linear_model_fn(features, labels, mode, params)

    trained = in_process(model_fn, params={}).train(endless_input_fn, steps=5)
    estimator = Estimator(
        model_fn, config=trained.config.replace(scaling_config=ScalingConfig(num_workers=2)), params={}
    )
    before, started = contents_of(estimator.model_dir), ray.is_initialized()

    assert estimator.train(endless_input_fn, max_steps=5) is estimator
    with pytest.raises(ShippingError, match="lock"):
        estimator.train(endless_input_fn, max_steps=6)

    assert contents_of(estimator.model_dir) == before
    assert ray.is_initialized() is started


def contents_of(directory: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()}


# 3


def test_a4_3_train_returns_the_estimator_and_logs_the_last_loss(
    in_process: Make, caplog: pytest.LogCaptureFixture
) -> None:
    losses = []

    class ReadsLoss(v1.train.SessionRunHook):
        def before_run(self, run_context: Any) -> Any:
            (loss,) = v1.get_collection(v1.GraphKeys.LOSSES)
            return v1.train.SessionRunArgs(loss)

        def after_run(self, run_context: Any, run_values: Any) -> None:
            losses.append(float(run_values.results))

    estimator = in_process(linear_model_fn, params={})
    with caplog.at_level(logging.INFO):
        assert estimator.train(endless_input_fn, steps=3, hooks=[ReadsLoss()]) is estimator

    assert len(losses) == 3
    assert f"Loss for final step: {losses[-1]}." in caplog.messages


def test_a4_3_the_last_loss_of_no_steps_is_none(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        in_process(linear_model_fn, params={}).train(empty_input_fn)

    assert "Loss for final step: None." in caplog.messages


# 4


@pytest.mark.parametrize("steps", [None, STEPS_OF_ONE_PASS + 100])
def test_a4_4_the_end_of_the_input_ends_training(in_process: Make, steps: int | None) -> None:
    calls: list[tuple[str, str]] = []
    estimator = in_process(linear_model_fn, params={})

    estimator.train(one_pass_input_fn, steps=steps, hooks=[RecordingHook("user", calls)])

    assert step_of(estimator) == STEPS_OF_ONE_PASS
    assert saved_steps(estimator.model_dir)[-1] == STEPS_OF_ONE_PASS
    assert calls[-1] == ("user", "end")


def test_a4_4_a_hook_that_raises_stop_iteration_ends_training(in_process: Make) -> None:
    calls: list[tuple[str, str]] = []

    class Bored(RecordingHook):
        def before_run(self, run_context: Any) -> None:
            if calls.count(("user", "after_run")) == 3:
                raise StopIteration
            super().before_run(run_context)

    estimator = in_process(linear_model_fn, params={}).train(endless_input_fn, hooks=[Bored("user", calls)])

    assert step_of(estimator) == 3
    assert calls[-1] == ("user", "end")


def test_a4_4_an_empty_input_is_warned_of(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    estimator = in_process(linear_model_fn, params={}).train(empty_input_fn)

    assert "Training with estimator made no steps. Perhaps input is empty or misspecified." in caplog.messages
    assert step_of(estimator) == 0


def test_a4_4_an_input_that_ends_early_is_not_warned_of(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    in_process(linear_model_fn, params={}).train(one_pass_input_fn, steps=100)

    assert not any("made no steps" in message for message in caplog.messages)


# 13


@pytest.mark.parametrize("task_type", ["evaluator", "ps"])
def test_a4_13_tf_config_of_the_driver_is_ignored(
    in_process: Make, task_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = {"chief": ["a:1"], "ps": ["b:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": task_type, "index": 0}}))
    configs = []

    def model_fn(features: Any, labels: Any, mode: str, params: Any, config: RunConfig) -> EstimatorSpec:
        configs.append(config)
        return linear_model_fn(features, labels, mode, params)

    estimator = in_process(model_fn, params={}).train(endless_input_fn, steps=2)

    assert step_of(estimator) == 2
    assert (configs[0].task_type, configs[0].is_chief, configs[0].num_ps_replicas) == ("worker", True, 0)


def test_a4_13_the_chief_runs_the_chiefs_hooks(in_process: Make) -> None:
    calls: list[tuple[str, str]] = []
    model_fn = with_spec(
        linear_model_fn,
        training_chief_hooks=lambda: [RecordingHook("chief", calls)],
        training_hooks=lambda: [RecordingHook("all", calls)],
    )

    in_process(model_fn, params={}).train(endless_input_fn, steps=2)

    assert calls.count(("chief", "after_run")) == calls.count(("all", "after_run")) == 2


# 15


@pytest.mark.parametrize("name", ["train_distribute", "eval_distribute", "experimental_distribute", "device_fn"])
def test_a4_15_placement_is_left_to_scaling_config(in_process: Make, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be None.*scaling_config="):
        in_process(linear_model_fn, **{name: lambda op: "/cpu:0"})


# In process


def test_in_process_model_fn_and_input_fn_share_the_callers_objects(in_process: Make) -> None:
    seen: list[str] = []

    def input_fn() -> tf.data.Dataset:
        seen.append("input_fn")
        return endless_input_fn()

    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        seen.append("model_fn")
        return linear_model_fn(features, labels, mode, params)

    in_process(model_fn, params={}).train(input_fn, steps=1)

    assert seen == ["input_fn", "model_fn"]


def test_in_process_hooks_keep_their_state(in_process: Make) -> None:
    class Counter(v1.train.SessionRunHook):
        steps = 0

        def after_run(self, run_context: Any, run_values: Any) -> None:
            self.steps += 1

    counter = Counter()
    estimator = in_process(linear_model_fn, params={})
    estimator.train(endless_input_fn, steps=3, hooks=[counter])
    estimator.train(endless_input_fn, steps=4, hooks=[counter])

    assert counter.steps == 7


def test_in_process_a_hook_factory_is_called_in_the_graph_after_model_fn(in_process: Make) -> None:
    calls: list[tuple[str, str]] = []

    def factory() -> RecordingHook:
        assert v1.get_default_graph().get_operation_by_name("GradientDescent") is not None
        return RecordingHook("made", calls)

    in_process(linear_model_fn, params={}).train(endless_input_fn, steps=2, hooks=[factory])

    assert calls.count(("made", "after_run")) == 2


def keras_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    hidden = keras.layers.Dense(3, activation="relu")(features)
    prediction = keras.layers.Dense(1)(hidden)
    loss = tf.reduce_mean(tf.square(prediction - labels)) if labels is not None else None
    train_op = None
    if loss is not None:
        train_op = v1.train.GradientDescentOptimizer(0.01).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, predictions=prediction, loss=loss, train_op=train_op)


def test_in_process_two_trainings_give_the_same_variable_names(in_process: Make, tmp_path: Path) -> None:
    first = in_process(keras_model_fn, model_dir=tmp_path / "a").train(endless_input_fn, steps=1)
    second = in_process(keras_model_fn, model_dir=tmp_path / "b").train(endless_input_fn, steps=1)

    assert first.get_variable_names() == second.get_variable_names()
    second.train(endless_input_fn, steps=1)
    assert step_of(second) == 2
    assert second.evaluate(one_pass_input_fn)["global_step"] == 2


def test_in_process_the_callers_graph_is_left_alone(in_process: Make) -> None:
    with tf.Graph().as_default() as own:
        tf.constant(1.0, name="own")
        in_process(linear_model_fn, params={}).train(endless_input_fn, steps=2)

        assert v1.get_default_graph() is own
        assert [op.name for op in own.get_operations()] == ["own"]
        assert not own.finalized
        assert v1.get_collection(v1.GraphKeys.GLOBAL_STEP) == []


def test_in_process_eager_code_works_before_and_after(in_process: Make) -> None:
    variable = tf.Variable(1.0)
    in_process(linear_model_fn, params={}).train(endless_input_fn, steps=2)

    assert tf.executing_eagerly()
    assert float(variable.assign_add(1.0)) == 2.0


def test_in_process_an_error_of_model_fn_is_the_callers_own(in_process: Make) -> None:
    error = KeyError("no such column")

    def model_fn(features: Any, labels: Any) -> EstimatorSpec:
        raise error

    with pytest.raises(KeyError) as caught:
        in_process(model_fn).train(endless_input_fn, steps=1)

    assert caught.value is error


def test_in_process_training_leaves_the_environment_and_the_directory_alone(in_process: Make) -> None:
    environment, directory = dict(os.environ), os.getcwd()

    in_process(linear_model_fn, params={}).train(endless_input_fn, steps=1)

    assert dict(os.environ) == environment
    assert os.getcwd() == directory


def test_in_process_generators_of_the_caller_feed_training(in_process: Make) -> None:
    drawn = []

    def batches() -> Iterator[tuple[Any, Any]]:
        for start in range(0, 96, 32):
            drawn.append(start)
            yield X[start : start + 32], X[start : start + 32, :1]

    def input_fn() -> tf.data.Dataset:
        spec = (tf.TensorSpec([None, 4]), tf.TensorSpec([None, 1]))
        return tf.data.Dataset.from_generator(batches, output_signature=spec)

    estimator = in_process(linear_model_fn, params={}).train(input_fn)

    assert step_of(estimator) == 3
    assert drawn == [0, 32, 64]


def test_a4_4_a_model_that_does_not_look_at_its_input_ends_with_it(in_process: Callable[..., Any]) -> None:
    def blind(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        weight = v1.get_variable("weight", [], initializer=v1.ones_initializer())
        loss = tf.square(weight)
        step = v1.train.get_global_step()
        return EstimatorSpec(mode, loss=loss, train_op=v1.train.GradientDescentOptimizer(0.1).minimize(loss, step))

    estimator = in_process(blind)
    estimator.train(lambda: tf.data.Dataset.from_tensors((0.0, 0.0)).repeat(3))
    assert estimator.latest_checkpoint() is not None
