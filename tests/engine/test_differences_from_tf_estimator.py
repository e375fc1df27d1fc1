"""Behaviour that differs from tf.estimator on purpose.

The differences in `model_dir` of model_fn, `params` and `strip_default_attrs` are tested with the features themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.models import endless_input_fn, linear_model_fn, one_pass_input_fn
from support.recording import EACH_SAVE_ARRIVES, RecordingHook, RecordingListener, saved_steps

from ray_estimator import CheckpointNotFoundError, Estimator, EstimatorNotTrainedError, EstimatorSpec, ModeKeys

Make = Callable[..., Any]


def step_of(estimator: Any) -> int:
    return int(estimator.get_variable_value("global_step"))


# The order of arguments


def test_a0_the_positional_order_is_input_fn_steps_hooks_max_steps(in_process: Make) -> None:
    calls: list[tuple[str, str]] = []
    estimator = in_process(linear_model_fn, params={})

    estimator.train(endless_input_fn, 2, [RecordingHook("user", calls)])
    estimator.train(endless_input_fn, None, None, 5)

    assert calls.count(("user", "after_run")) == 2
    assert step_of(estimator) == 5


def test_a0_hooks_in_the_place_of_steps_are_refused(in_process: Make) -> None:
    with pytest.raises(TypeError, match=r"steps must be an int.*pass hooks by name: hooks="):
        in_process(linear_model_fn).train(endless_input_fn, [RecordingHook("user", [])])


@pytest.mark.parametrize("steps", [10, np.int64(10)])
def test_a0_steps_in_the_place_of_hooks_are_refused(in_process: Make, steps: Any) -> None:
    with pytest.raises(TypeError, match=r"hooks must be a list.*pass the number by name: steps="):
        in_process(linear_model_fn).train(endless_input_fn, None, steps)


def test_a0_hooks_in_the_place_of_max_steps_are_refused(in_process: Make) -> None:
    with pytest.raises(TypeError, match="max_steps must be an int"):
        in_process(linear_model_fn).train(endless_input_fn, None, None, [RecordingHook("user", [])])


def test_a0_saving_listeners_are_keyword_only(in_process: Make) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        in_process(linear_model_fn).train(endless_input_fn, 1, None, None, [RecordingListener()])


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a0_evaluate_checks_the_order_as_train_does(in_process: Make, verb: str) -> None:
    estimator = in_process(linear_model_fn)
    with pytest.raises(TypeError, match="pass hooks by name"):
        getattr(estimator, verb)(endless_input_fn, [])
    with pytest.raises(TypeError, match="pass the number by name"):
        getattr(estimator, verb)(endless_input_fn, None, 1)


def test_a0_what_the_specification_lacks_is_keyword_only(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={})
    with pytest.raises(TypeError, match="positional argument"):
        Estimator(linear_model_fn, "run", None, {}, "elsewhere")  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional argument"):
        estimator.evaluate(endless_input_fn, 1, None, None, None, True)
    with pytest.raises(TypeError, match="positional argument"):
        estimator.predict(endless_input_fn, None, None, None, False)


# Models without a checkpoint


def test_a0_an_untrained_model_is_not_evaluated_unless_asked_for(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={})
    message = f"Could not find trained model in model_dir: {estimator.model_dir}.*allow_untrained=True"

    with pytest.raises(EstimatorNotTrainedError, match=message) as caught:
        estimator.evaluate(one_pass_input_fn)

    assert isinstance(caught.value, ValueError)
    assert estimator.evaluate(one_pass_input_fn, allow_untrained=True)["global_step"] == 0


def test_a0_an_untrained_model_does_not_predict_unless_asked_to(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={})
    rows = estimator.predict(one_pass_input_fn)  # no error yet: nothing happens before the first next()

    with pytest.raises(EstimatorNotTrainedError, match="Could not find trained model in model_dir: "):
        next(rows)

    assert "y" in next(estimator.predict(one_pass_input_fn, allow_untrained=True))


def test_a0_another_value_error_of_an_evaluation_is_itself(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        if mode == ModeKeys.EVAL:
            raise ValueError("the model's own")
        return linear_model_fn(features, labels, mode, {})

    estimator = in_process(model_fn).train(endless_input_fn, steps=1)

    with pytest.raises(ValueError, match="the model's own") as caught:
        estimator.evaluate(one_pass_input_fn)
    assert not isinstance(caught.value, EstimatorNotTrainedError)


# max_steps and damaged checkpoints


def damage(estimator: Any, step: int) -> None:
    (data,) = Path(estimator.model_dir).glob(f"model.ckpt-{step}.data-*")
    data.unlink()


def test_a0_max_steps_count_from_the_checkpoint_before_a_damaged_one(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}).train(endless_input_fn, steps=2).train(endless_input_fn, steps=3)
    damage(estimator, 5)
    steps: list[tuple[str, str]] = []

    estimator.train(endless_input_fn, max_steps=5, hooks=[RecordingHook("user", steps)])

    assert steps.count(("user", "after_run")) == 3
    assert step_of(estimator) == 5


def test_a0_training_does_not_begin_anew_where_every_checkpoint_is_damaged(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=10).train(endless_input_fn, steps=2)
    damage(estimator, 0)
    damage(estimator, 2)
    before = saved_steps(estimator.model_dir)

    with pytest.raises(
        CheckpointNotFoundError, match=r"model\.ckpt-2\.data.* is missing, .*delete .*/checkpoint to train"
    ):
        estimator.train(endless_input_fn, max_steps=5)

    assert saved_steps(estimator.model_dir) == before
    (Path(estimator.model_dir) / "checkpoint").unlink()
    assert step_of(estimator.train(endless_input_fn, max_steps=5)) == 5


def test_a0_training_goes_on_from_the_one_before_a_checkpoint_of_broken_bytes(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={})
    estimator.train(endless_input_fn, steps=2, saving_listeners=EACH_SAVE_ARRIVES)
    (data,) = Path(estimator.model_dir).glob("model.ckpt-2.data-*")
    data.write_bytes(b"x" * data.stat().st_size)

    steps: list[tuple[str, str]] = []

    estimator.train(endless_input_fn, max_steps=5, hooks=[RecordingHook("user", steps)])

    assert steps.count(("user", "after_run")) == 5
    assert step_of(estimator) == 5


# Where things go


def test_a0_without_a_model_dir_there_is_a_temporary_one(caplog: pytest.LogCaptureFixture) -> None:
    estimator = Estimator(linear_model_fn)

    assert Path(estimator.model_dir).is_dir()
    assert f"Using temporary folder as model directory: {estimator.model_dir}" in caplog.messages
    assert Estimator(linear_model_fn).model_dir != estimator.model_dir


def test_a0_an_export_is_a_str(in_process: Make, tmp_path: Path) -> None:
    def serving_input_receiver_fn() -> Any:
        from ray_estimator.export import TensorServingInputReceiver

        x = v1.placeholder(tf.float32, [None, 4])
        return TensorServingInputReceiver(x, x)

    estimator = in_process(linear_model_fn, params={}).train(endless_input_fn, steps=1)

    assert isinstance(estimator.export_savedmodel(tmp_path / "export", serving_input_receiver_fn), str)
