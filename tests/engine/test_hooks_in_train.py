"""TensorFlow's hooks in train: each sees the values of the step that it runs around."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.hook_models import (
    EveryOtherStep,
    NotingFinalOps,
    NotingListener,
    counting_input_fn,
    slope_model_fn,
    timelines,
)
from support.probes import notes
from support.recording import RecordingListener, events, published_steps, scalars

from ray_estimator import EstimatorSpec

Make = Callable[..., Any]


def messages(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    """Return the messages that contain all of these words."""
    return [message for message in caplog.messages if all(word in message for word in words)]


# LoggingTensorHook


def test_a4_5_logging_tensor_hook_takes_tensors_by_name(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    by_tag = v1.train.LoggingTensorHook({"mean": "seen:0", "falling": "line"}, every_n_iter=2)
    by_list = v1.train.LoggingTensorHook(["seen"], every_n_iter=3)

    with caplog.at_level(logging.INFO):
        in_process(slope_model_fn, log_step_count_steps=None).train(counting_input_fn, hooks=[by_tag, by_list])

    pairs = [re.match(r"falling = ([-\d.]+), mean = ([-\d.]+)", text) for text in caplog.messages]
    # The weight is 0, -0.1, -0.2 ... before each step.
    assert [[float(number) for number in pair.groups()] for pair in pairs if pair] == [[0, 0], [-0.2, 2], [-0.4, 4]]
    assert [text.split(" (")[0] for text in messages(caplog, "seen = ")] == ["seen = 0.0", "seen = 3.0"]


def test_a4_5_logging_tensor_hook_at_the_end_with_a_formatter(
    in_process: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def formatted(values: dict[str, Any]) -> str:
        return f"{values['line']:.2f} at the end"

    hook = v1.train.LoggingTensorHook({"line": "control_line:0"}, at_end=True, formatter=formatted)

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        spec = slope_model_fn(features, labels, mode)
        weight = v1.trainable_variables()[0]
        tf.identity(weight.read_value(), name="control_line")
        return spec

    with caplog.at_level(logging.INFO):
        in_process(model_fn).train(counting_input_fn, steps=3, hooks=[hook])

    assert messages(caplog, "at the end") == ["-0.30 at the end"]


def test_a4_5_logging_tensor_hook_may_go_by_the_clock(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    hook = v1.train.LoggingTensorHook(["seen"], every_n_secs=1e-9)

    with caplog.at_level(logging.INFO):
        in_process(slope_model_fn).train(counting_input_fn, hooks=[hook])

    assert len(messages(caplog, "seen = ")) == 6


def test_a4_5_a_tensor_that_is_not_there_is_named(in_process: Make) -> None:
    with pytest.raises(KeyError, match="probabilities"):
        in_process(slope_model_fn).train(
            counting_input_fn, hooks=[v1.train.LoggingTensorHook(["probabilities"], every_n_iter=1)]
        )


# SummarySaverHook and StepCounterHook


def test_a4_5_summary_saver_hook_of_the_users_writes_where_it_says(in_process: Make, tmp_path: Path) -> None:
    def hook() -> v1.train.SessionRunHook:
        line = v1.summary.scalar("own line", v1.get_default_graph().get_tensor_by_name("line:0"), collections=[])
        return v1.train.SummarySaverHook(save_steps=2, output_dir=str(tmp_path / "own"), summary_op=line)

    estimator = in_process(slope_model_fn, save_summary_steps=1).train(counting_input_fn, hooks=[hook])

    assert scalars(tmp_path / "own", "own_line") == pytest.approx({1: 0.0, 3: -0.2, 5: -0.4})
    assert scalars(estimator.model_dir, "own_line") == {}


def test_a4_5_summary_saver_hook_of_the_spec_writes_the_summaries_of_the_scaffold(
    in_process: Make, tmp_path: Path
) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        v1.summary.scalar("average", tf.reduce_mean(features))
        scaffold = v1.train.Scaffold()
        hook = v1.train.SummarySaverHook(save_steps=3, output_dir=str(tmp_path / "own"), scaffold=scaffold)
        return slope_model_fn(features, labels, mode)._replace(scaffold=scaffold, training_chief_hooks=[hook])

    in_process(model_fn, save_summary_steps=None).train(counting_input_fn)

    assert scalars(tmp_path / "own", "average") == {1: 0.0, 4: 3.0}
    assert scalars(tmp_path / "own", "loss") == pytest.approx({1: 0.0, 4: -0.3})


def test_a4_7_summaries_that_hooks_add_when_they_begin_are_written(in_process: Make) -> None:
    class Summarizes(v1.train.SessionRunHook):
        def begin(self) -> None:
            v1.summary.scalar("twice", 2 * v1.get_default_graph().get_tensor_by_name("seen:0"))

    estimator = in_process(slope_model_fn, save_summary_steps=2).train(counting_input_fn, hooks=[Summarizes()])

    assert scalars(estimator.model_dir, "twice") == {1: 0.0, 3: 4.0, 5: 8.0}
    assert scalars(estimator.model_dir, "loss") == pytest.approx({1: 0.0, 3: -0.2, 5: -0.4})


def test_a4_7_a_summary_op_in_the_collection_is_the_one_that_is_written(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        v1.add_to_collection(v1.GraphKeys.SUMMARY_OP, v1.summary.scalar("wanted", tf.reduce_mean(features)))
        return slope_model_fn(features, labels, mode)

    estimator = in_process(model_fn, save_summary_steps=1).train(counting_input_fn, steps=2)

    assert scalars(estimator.model_dir, "wanted") == {1: 0.0, 2: 1.0}
    assert scalars(estimator.model_dir, "loss") == {}


def test_a4_8_step_counter_hook_of_the_users_writes_its_own_rate(
    in_process: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook = v1.train.StepCounterHook(every_n_steps=2, output_dir=str(tmp_path / "rate"))

    with caplog.at_level(logging.INFO):
        in_process(slope_model_fn, log_step_count_steps=None).train(counting_input_fn, hooks=[hook])

    rates = scalars(tmp_path / "rate", "global_step/sec")
    assert list(rates) == [3, 5]
    assert all(rate > 0 for rate in rates.values())
    assert len(messages(caplog, "global_step/sec: ")) == 2


# ProfilerHook


def test_a4_5_profiler_hook_writes_timelines(in_process: Make, tmp_path: Path) -> None:
    def hook() -> v1.train.SessionRunHook:
        return v1.train.ProfilerHook(save_steps=2, output_dir=str(tmp_path))

    in_process(slope_model_fn).train(counting_input_fn, hooks=[hook])

    seen = timelines(tmp_path)
    assert sorted(seen) == [2, 4, 6]
    assert all("ResourceApplyGradientDescent" in operations for operations in seen.values())
    tags = [event.tagged_run_metadata.tag for event in events(tmp_path) if event.HasField("tagged_run_metadata")]
    assert tags == ["step_2", "step_4", "step_6"]


# FinalOpsHook and FeedFnHook


def test_a4_5_final_ops_hook_fetches_once_at_the_end(in_process: Make) -> None:
    hooks = []

    def final_hook() -> v1.train.FinalOpsHook:
        weight = v1.trainable_variables()[0]
        placeholder = v1.get_default_graph().get_tensor_by_name("slope:0")
        hooks.append(v1.train.FinalOpsHook({"weight": weight, "slope": placeholder}, {placeholder: 7.0}))
        return hooks[0]

    in_process(slope_model_fn).train(counting_input_fn, steps=4, hooks=[final_hook])

    assert hooks[0].final_ops_values == pytest.approx({"weight": -0.4, "slope": 7.0})


def test_a4_5_final_ops_hook_takes_tensors_by_name(in_process: Make) -> None:
    hook = v1.train.FinalOpsHook("line:0")

    in_process(slope_model_fn).train(lambda: counting_input_fn().repeat(), steps=4, hooks=[hook])

    assert hook.final_ops_values == pytest.approx(-0.4)


def test_a4_5_feed_fn_hook_feeds_each_step(in_process: Make) -> None:
    slopes = iter([1.0, 10.0, 100.0])
    hook = v1.train.FeedFnHook(lambda: {"slope:0": next(slopes)})

    estimator = in_process(slope_model_fn).train(counting_input_fn, steps=3, hooks=[hook])

    assert estimator.get_variable_value("weight") == pytest.approx(-11.1)


def test_a4_5_two_hooks_that_feed_the_same_tensor_are_refused(in_process: Make) -> None:
    hooks = [v1.train.FeedFnHook(lambda: {"slope:0": 1.0}) for _ in range(2)]

    with pytest.raises(RuntimeError, match=r"Same tensor is fed by two hooks|conflict"):
        in_process(slope_model_fn).train(counting_input_fn, hooks=hooks)


# GlobalStepWaiterHook


def test_a4_5_global_step_waiter_hook_lets_a_run_begin_that_is_there_already(in_process: Make) -> None:
    estimator = in_process(slope_model_fn).train(counting_input_fn, steps=3)

    estimator.train(counting_input_fn, steps=2, hooks=[v1.train.GlobalStepWaiterHook(3)])

    assert estimator.get_variable_value("global_step") == 5


@pytest.mark.parametrize("brought_by", ["user", "spec"])
def test_a4_5_global_step_waiter_hook_that_would_wait_for_ever_is_refused(in_process: Make, brought_by: str) -> None:
    waiter = v1.train.GlobalStepWaiterHook(5)

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return slope_model_fn(features, labels, mode)._replace(training_hooks=[waiter])

    estimator = in_process(slope_model_fn).train(counting_input_fn, steps=2)
    again = estimator if brought_by == "user" else in_process(model_fn)

    with pytest.raises(ValueError, match=r"GlobalStepWaiterHook waits for step 5.*starts at step 2.*Remove the hook"):
        again.train(counting_input_fn, steps=2, hooks=[waiter] if brought_by == "user" else [])


# NanTensorHook


def not_a_number_after(num_steps: int) -> v1.train.NanTensorHook:
    """Watches a tensor that is NaN once the features are `num_steps`."""
    seen = v1.get_default_graph().get_tensor_by_name("seen:0")
    return tf.where(seen < num_steps, 1.0, np.nan)


def test_a4_6_nan_tensor_hook_of_the_users_ends_the_run_with_an_error(in_process: Make) -> None:
    estimator = in_process(slope_model_fn, save_checkpoints_steps=1)

    with pytest.raises(v1.train.NanLossDuringTrainingError):
        estimator.train(counting_input_fn, hooks=[lambda: v1.train.NanTensorHook(not_a_number_after(2))])

    assert estimator.get_variable_value("global_step") == 3


def test_a4_6_nan_tensor_hook_may_just_stop(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    def hook() -> v1.train.SessionRunHook:
        return v1.train.NanTensorHook(not_a_number_after(2), fail_on_nan_loss=False)

    estimator = in_process(slope_model_fn).train(counting_input_fn, hooks=[hook])

    assert estimator.get_variable_value("global_step") == 3
    assert estimator.get_variable_value("weight") == pytest.approx(-0.3)
    assert messages(caplog, "Model diverged with loss = NaN.")


# CheckpointSaverHook and its listeners


def test_a4_11_checkpoint_saver_hook_of_the_users_calls_its_own_listeners_and_ours(
    in_process: Make, tmp_path: Path
) -> None:
    theirs, ours = RecordingListener(), RecordingListener()
    model_dir = tmp_path / "model"
    hook = v1.train.CheckpointSaverHook(str(model_dir), save_steps=2, listeners=[theirs])

    in_process(slope_model_fn).train(counting_input_fn, steps=3, hooks=[hook], saving_listeners=[ours])

    saves = [call for step in (0, 2, 3) for call in (("before_save", step), ("after_save", step))]
    assert theirs.calls == ours.calls == [("begin", None), *saves, ("end", 3)]
    assert published_steps(model_dir) == [0, 2, 3]


def test_a4_11_a_listener_may_read_the_model_that_is_saved(in_process: Make) -> None:
    weights = []

    class Reads(v1.train.CheckpointSaverListener):
        def begin(self) -> None:
            self._line = v1.get_default_graph().get_tensor_by_name("weight/Read/ReadVariableOp:0")

        def after_save(self, session: Any, global_step_value: Any) -> None:
            weights.append((int(global_step_value), float(session.run(self._line))))

    in_process(slope_model_fn, save_checkpoints_steps=2).train(counting_input_fn, steps=4, saving_listeners=[Reads()])

    assert dict(weights) == pytest.approx({0: 0.0, 2: -0.2, 4: -0.4})


# Users of SecondOrStepTimer


def test_a4_5_a_hook_with_a_second_or_step_timer(in_process: Make, tmp_path: Path) -> None:
    in_process(slope_model_fn).train(counting_input_fn, hooks=[EveryOtherStep(str(tmp_path))])

    assert notes(tmp_path, "line")[0] == [[0, 0.0], [2, pytest.approx(-0.2)], [4, pytest.approx(-0.4)]]


# All together, from the spec


def test_a4_5_the_hooks_of_the_spec_work_side_by_side(in_process: Make, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        spec = slope_model_fn(features, labels, mode)
        chiefs = [
            v1.train.CheckpointSaverHook(f"{folder}/model", save_steps=4, listeners=[NotingListener(folder)]),
            v1.train.ProfilerHook(save_steps=4, output_dir=folder),
        ]
        others = [NotingFinalOps(folder, spec.loss), EveryOtherStep(folder), v1.train.StopAtStepHook(num_steps=5)]
        return spec._replace(training_chief_hooks=chiefs, training_hooks=others)

    estimator = in_process(model_fn).train(lambda: counting_input_fn().repeat())

    assert estimator.get_variable_value("global_step") == 5
    assert published_steps(estimator.model_dir) == [0, 4, 5]
    assert [step for method, step in notes(folder, "listener")[0] if method == "after_save"] == [0, 4, 5]
    assert sorted(timelines(folder)) == [4]
    assert notes(folder, "final")[0] == [[pytest.approx(-0.5)]]
    assert [step for step, _ in notes(folder, "line")[0]] == [0, 2, 4]
