"""Estimator.train: hooks, NaN losses, logs and summaries."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.models import NUM_ROWS, endless_input_fn, linear_model_fn, one_pass_input_fn
from support.recording import (
    Calls,
    RecordingHook,
    events,
    published_steps,
    saved_steps,
    scalars,
    spy_on,
    with_spec,
)
from tensorflow.python.training import training_util

from ray_estimator import EstimatorSpec
from ray_estimator._engine.hooks.saving import SaveCheckpoints

Make = Callable[..., Any]

STEPS_OF_ONE_PASS = NUM_ROWS // 32


def losses_input_fn(*losses: float) -> Callable[[], tf.data.Dataset]:
    """An input that makes `given_loss_model_fn` lose these, step by step, while its weight is 1."""
    return lambda: tf.data.Dataset.from_tensor_slices(np.array(losses, np.float32))


def given_loss_model_fn(features: Any, mode: str) -> EstimatorSpec:
    """A weight that keeps its value, except that a loss that is not a number makes it none either."""
    weight = v1.get_variable("weight", [], initializer=v1.ones_initializer())
    loss = weight * features
    train_op = v1.train.GradientDescentOptimizer(0.0).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def of(calls: Calls, method: str) -> list[str]:
    """Who was called so, in order, each once."""
    return list(dict.fromkeys(name for name, called in calls if called == method))


# 5


@pytest.mark.parametrize("hooks", [[1], ["hook"], 1.5, [None]])
def test_a4_5_what_is_no_hook_is_refused(in_process: Make, hooks: Any) -> None:
    with pytest.raises(TypeError, match="Hooks must be a SessionRunHook, got "):
        in_process(linear_model_fn).train(endless_input_fn, steps=1, hooks=hooks)


def test_a4_5_one_hook_without_a_list_is_refused(in_process: Make) -> None:
    with pytest.raises(TypeError, match=r"Hooks must be a SessionRunHook, got .*Pass a list of them"):
        in_process(linear_model_fn).train(endless_input_fn, steps=1, hooks=RecordingHook("user", []))


def test_a4_5_what_a_factory_makes_must_be_a_hook(in_process: Make) -> None:
    with pytest.raises(TypeError, match="Hooks must be a SessionRunHook, got 'no hook'"):
        in_process(linear_model_fn, params={}).train(endless_input_fn, steps=1, hooks=[lambda: "no hook"])


def test_a4_5_hooks_may_be_any_iterable(in_process: Make) -> None:
    calls: Calls = []
    hooks = (RecordingHook(name, calls) for name in ("first", "second"))

    in_process(linear_model_fn, params={}).train(endless_input_fn, steps=1, hooks=hooks)

    assert of(calls, "after_run") == ["first", "second"]


@pytest.mark.parametrize("method", ["begin", "before_run", "after_run", "end"])
def test_a4_5_the_order_of_hooks(in_process: Make, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    calls: Calls = []
    for kind in (
        SaveCheckpoints,
        v1.train.StepCounterHook,
        v1.train.SummarySaverHook,
        v1.train.StopAtStepHook,
        v1.train.NanTensorHook,
        v1.train.LoggingTensorHook,
    ):
        spy_on(monkeypatch, kind, calls)
    model_fn = with_spec(
        linear_model_fn,
        training_chief_hooks=lambda: [RecordingHook("chief of spec", calls)],
        training_hooks=lambda: [RecordingHook("hook of spec", calls)],
    )

    users = [RecordingHook("user 1", calls), RecordingHook("user 2", calls)]
    in_process(model_fn, params={}).train(endless_input_fn, steps=2, hooks=users)

    assert of(calls, method) == [
        "SaveCheckpoints",
        "chief of spec",
        "StepCounterHook",
        "SummarySaverHook",
        "user 1",
        "user 2",
        "StopAtStepHook",
        "NanTensorHook",
        "LoggingTensorHook",
        "hook of spec",
    ]


def test_a4_5_the_life_of_a_hook(in_process: Make) -> None:
    calls: Calls = []

    in_process(linear_model_fn, params={}).train(endless_input_fn, steps=2, hooks=[RecordingHook("user", calls)])

    assert [method for _, method in calls] == [
        *("begin", "after_create_session"),
        *("before_run", "after_run"),
        *("before_run", "after_run"),
        "end",
    ]


def test_a4_5_the_step_that_finds_no_data_has_no_after_run(in_process: Make) -> None:
    calls: Calls = []

    in_process(linear_model_fn, params={}).train(one_pass_input_fn, hooks=[RecordingHook("user", calls)])

    assert calls.count(("user", "before_run")) == STEPS_OF_ONE_PASS + 1
    assert calls.count(("user", "after_run")) == STEPS_OF_ONE_PASS
    assert calls[-2:] == [("user", "before_run"), ("user", "end")]


def test_a4_5_after_another_error_there_is_neither_after_run_nor_end(in_process: Make) -> None:
    calls: Calls = []

    def input_fn() -> tf.data.Dataset:
        return one_pass_input_fn().map(lambda x, y: (tf.debugging.check_numerics(x / 0.0, "bad row"), y))

    with pytest.raises(tf.errors.InvalidArgumentError, match="bad row"):
        in_process(linear_model_fn, params={}).train(input_fn, hooks=[RecordingHook("user", calls)])

    assert calls[-1] == ("user", "before_run")


def test_a4_5_an_error_of_a_hook_reaches_the_caller(in_process: Make) -> None:
    calls: Calls = []
    error = OSError("no more space")

    class Fails(RecordingHook):
        def after_run(self, run_context: Any, run_values: Any) -> None:
            raise error

    estimator = in_process(linear_model_fn, params={})
    with pytest.raises(OSError, match="no more space") as caught:
        estimator.train(endless_input_fn, steps=5, hooks=[Fails("fails", calls), RecordingHook("later", calls)])

    assert caught.value is error
    assert of(calls, "end") == []
    assert saved_steps(estimator.model_dir) == [0]


def test_a4_5_a_hook_may_ask_to_stop(in_process: Make) -> None:
    calls: Calls = []

    class StopsAfterThree(RecordingHook):
        def after_run(self, run_context: Any, run_values: Any) -> None:
            super().after_run(run_context, run_values)
            if calls.count(("user", "after_run")) == 3:
                run_context.request_stop()

    estimator = in_process(linear_model_fn, params={}).train(endless_input_fn, hooks=[StopsAfterThree("user", calls)])

    assert estimator.get_variable_value("global_step") == 3
    assert calls[-1] == ("user", "end")


@pytest.mark.parametrize(("given", "last_step"), [({"num_steps": 3}, 5), ({"last_step": 4}, 4)])
def test_a4_5_a_stop_at_step_hook_of_the_user_is_heeded(
    in_process: Make, given: dict[str, int], last_step: int
) -> None:
    estimator = in_process(linear_model_fn, params={}).train(endless_input_fn, steps=2)

    estimator.train(endless_input_fn, steps=100, hooks=[v1.train.StopAtStepHook(**given)])

    assert estimator.get_variable_value("global_step") == last_step


def test_a4_5_a_hook_may_add_operations_in_begin(in_process: Make) -> None:
    doubled = []

    class Doubles(v1.train.SessionRunHook):
        def begin(self) -> None:
            self._twice = v1.train.get_global_step() * 2

        def before_run(self, run_context: Any) -> Any:
            return v1.train.SessionRunArgs(self._twice)

        def after_run(self, run_context: Any, run_values: Any) -> None:
            doubled.append(int(run_values.results))

    in_process(linear_model_fn, params={}).train(endless_input_fn, steps=3, hooks=[Doubles()])

    assert len(doubled) == 3
    assert all(value % 2 == 0 for value in doubled)


def test_a4_5_user_hooks_see_a_loss_before_it_is_refused(in_process: Make) -> None:
    calls: Calls = []
    model_fn = with_spec_without_labels(
        given_loss_model_fn, training_hooks=lambda: [RecordingHook("hook of spec", calls)]
    )

    with pytest.raises(v1.train.NanLossDuringTrainingError):
        in_process(model_fn).train(losses_input_fn(1, np.nan), hooks=[RecordingHook("user", calls)])

    assert calls.count(("user", "after_run")) == 2
    assert calls.count(("hook of spec", "after_run")) == 1


def with_spec_without_labels(model_fn: Callable[..., Any], **fields: Callable[[], Any]) -> Callable[..., Any]:
    changed = with_spec(lambda features, labels, mode, params: model_fn(features, mode), **fields)
    return lambda features, mode: changed(features, None, mode, None)


# 6


def test_a4_6_a_loss_that_is_not_a_number_ends_training(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    calls: Calls = []

    with pytest.raises(v1.train.NanLossDuringTrainingError):
        in_process(given_loss_model_fn).train(losses_input_fn(1, 1, np.nan, 1), hooks=[RecordingHook("user", calls)])

    assert "Model diverged with loss = NaN." in caplog.messages
    assert calls.count(("user", "before_run")) == 3
    assert of(calls, "end") == []


def test_a4_6_there_is_no_last_checkpoint(in_process: Make) -> None:
    estimator = in_process(given_loss_model_fn)

    with pytest.raises(v1.train.NanLossDuringTrainingError):
        estimator.train(losses_input_fn(1, 1, np.nan))

    assert saved_steps(estimator.model_dir) == [0]


@pytest.mark.parametrize("interval", [{"save_checkpoints_steps": 1}, {"save_checkpoints_secs": 1e-9}])
def test_a4_6_weights_that_are_not_numbers_are_never_published(in_process: Make, interval: dict[str, Any]) -> None:
    estimator = in_process(given_loss_model_fn, **interval)

    with pytest.raises(v1.train.NanLossDuringTrainingError):
        estimator.train(losses_input_fn(1, 1, np.nan))

    assert published_steps(estimator.model_dir) == saved_steps(estimator.model_dir) == [0, 1, 2]
    assert estimator.get_variable_value("weight") == 1.0
    estimator.train(losses_input_fn(1, 1))
    assert estimator.get_variable_value("global_step") == 4


# 7


def test_a4_7_the_loss_is_summarized_and_collected(in_process: Make) -> None:
    collected = []

    class ReadsCollection(v1.train.SessionRunHook):
        def before_run(self, run_context: Any) -> Any:
            return v1.train.SessionRunArgs(v1.get_collection(v1.GraphKeys.LOSSES))

        def after_run(self, run_context: Any, run_values: Any) -> None:
            collected.append(run_values.results)

    estimator = in_process(given_loss_model_fn, save_summary_steps=1)
    estimator.train(losses_input_fn(4, 3, 2), hooks=[ReadsCollection()])

    assert scalars(estimator.model_dir, "loss") == {1: 4.0, 2: 3.0, 3: 2.0}
    assert collected == [[4.0], [3.0], [2.0]]


def test_a4_7_a_loss_summary_of_the_users_is_the_only_one(in_process: Make) -> None:
    def model_fn(features: Any, mode: str) -> EstimatorSpec:
        v1.summary.scalar("loss", features * 100.0)
        return given_loss_model_fn(features, mode)

    estimator = in_process(model_fn, save_summary_steps=1).train(losses_input_fn(4, 3))

    assert scalars(estimator.model_dir, "loss") == {1: 400.0, 2: 300.0}
    assert {value.tag for event in events(estimator.model_dir) for value in event.summary.value} == {"loss"}


def test_a4_7_summaries_come_at_their_interval(in_process: Make) -> None:
    def model_fn(features: Any, mode: str) -> EstimatorSpec:
        v1.summary.scalar("own", features)
        return given_loss_model_fn(features, mode)

    estimator = in_process(model_fn, save_summary_steps=3).train(losses_input_fn(*range(1, 9)))

    assert scalars(estimator.model_dir, "own") == {1: 1.0, 4: 4.0, 7: 7.0}


def test_a4_7_the_summary_op_of_the_scaffold_wins(in_process: Make) -> None:
    def model_fn(features: Any, mode: str) -> EstimatorSpec:
        wanted = v1.summary.scalar("wanted", features)
        v1.summary.scalar("other", features)
        spec = given_loss_model_fn(features, mode)
        return spec._replace(scaffold=v1.train.Scaffold(summary_op=wanted))

    estimator = in_process(model_fn, save_summary_steps=1).train(losses_input_fn(4, 3))

    assert {value.tag for event in events(estimator.model_dir) for value in event.summary.value} == {"wanted"}


@pytest.mark.parametrize("off", [None, 0])
def test_a4_7_summaries_may_be_off(in_process: Make, off: int | None) -> None:
    estimator = in_process(given_loss_model_fn, save_summary_steps=off).train(losses_input_fn(4, 3))

    assert scalars(estimator.model_dir, "loss") == {}


# 8


def test_a4_8_the_rate_is_logged_and_written(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    estimator = in_process(linear_model_fn, params={}, log_step_count_steps=4)

    with caplog.at_level(logging.INFO):
        estimator.train(endless_input_fn, steps=10)

    rates = [message for message in caplog.messages if re.fullmatch(r"global_step/sec: [\d.e+]+", message)]
    assert len(rates) == 2
    written = scalars(estimator.model_dir, "global_step/sec")
    assert list(written) == [5, 9]
    assert all(rate > 0 for rate in written.values())


def test_a4_8_loss_and_step_are_logged(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        in_process(given_loss_model_fn, log_step_count_steps=2).train(losses_input_fn(4, 3, 2, 1))

    lines = [re.match(r"loss = ([\d.]+), step = (\d+)", message) for message in caplog.messages]
    assert [(float(line[1]), int(line[2])) for line in lines if line] == [(4.0, 0), (2.0, 2)]


def test_a4_8_hooks_read_the_global_step_as_it_is_before_the_step(in_process: Make) -> None:
    steps = []

    class ReadsStep(v1.train.SessionRunHook):
        def begin(self) -> None:
            self._step = training_util._get_or_create_global_step_read()

        def before_run(self, run_context: Any) -> Any:
            return v1.train.SessionRunArgs(self._step)

        def after_run(self, run_context: Any, run_values: Any) -> None:
            steps.append(int(run_values.results))

    in_process(linear_model_fn, params={}).train(endless_input_fn, steps=200, hooks=[ReadsStep()])

    assert steps == list(range(200))


def test_a4_8_none_turns_both_off(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    estimator = in_process(linear_model_fn, params={}, log_step_count_steps=None)

    with caplog.at_level(logging.INFO):
        estimator.train(endless_input_fn, steps=5)

    assert not any(re.match(r"loss = |global_step/sec", message) for message in caplog.messages)
    assert scalars(estimator.model_dir, "global_step/sec") == {}
