"""Every method falls back from a damaged checkpoint to the newest intact one, unless the caller named it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.models import NUM_FEATURES, X, endless_input_fn, linear_model_fn, one_pass_input_fn
from support.recording import EACH_SAVE_ARRIVES, Calls, RecordingHook

from ray_estimator import CheckpointDamagedError, Estimator
from ray_estimator._storage.storage import Storage
from ray_estimator.export import ServingInputReceiver

Make = Callable[..., Any]


@pytest.fixture(params=["local", "memory"])
def model_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "model")
        return
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    Storage().remove_dir(url)


@pytest.fixture
def estimator(in_process: Make, model_dir: str) -> Any:
    """Checkpoints of the steps 0, 2 and 4. The newest has a wrong byte in its data, and the right size."""
    trained = in_process(linear_model_fn, params={}, model_dir=model_dir, save_checkpoints_steps=2)
    trained.train(endless_input_fn, steps=4, saving_listeners=EACH_SAVE_ARRIVES)
    flip_a_byte(f"{model_dir}/model.ckpt-4.data-00000-of-00001")
    return trained


def flip_a_byte(url: str) -> None:
    content = bytearray(Storage().read_bytes(url))
    content[-1] ^= 1
    Storage().write_bytes(url, bytes(content))


def serving_input_receiver_fn() -> ServingInputReceiver:
    x = v1.placeholder(tf.float32, [None, NUM_FEATURES])
    return ServingInputReceiver({"x": x}, {"x": x})


def evaluate(estimator: Estimator, **which: Any) -> int:
    return int(estimator.evaluate(one_pass_input_fn, **which)["global_step"])


def predict(estimator: Estimator, **which: Any) -> int:
    return len(list(estimator.predict(one_pass_input_fn, **which)))


def export(estimator: Estimator, **which: Any) -> int:
    base = f"{estimator.model_dir}/export"
    url = estimator.export_saved_model(base, serving_input_receiver_fn, **which)
    return int(Storage().exists(f"{url}/saved_model.pb"))


def variables(estimator: Estimator) -> int:
    return int(estimator.get_variable_value("global_step"))


@pytest.mark.parametrize(("verb", "result"), [(evaluate, 2), (predict, len(X)), (export, 1), (variables, 2)])
def test_the_newest_intact_checkpoint_is_used_and_logged(
    estimator: Any, verb: Callable[..., int], result: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert verb(estimator) == result
    assert "model.ckpt-4.data-00000-of-00001" in caplog.text
    assert "model.ckpt-2" in caplog.text or "the previous checkpoint" in caplog.text


def test_training_resumes_from_the_newest_intact_checkpoint(estimator: Any, caplog: pytest.LogCaptureFixture) -> None:
    calls: Calls = []
    estimator.train(endless_input_fn, hooks=[RecordingHook("own", calls)], max_steps=6)
    assert "model.ckpt-4.data-00000-of-00001" in caplog.text
    assert calls.count(("own", "before_run")) == 4
    assert evaluate(estimator) == 6


@pytest.mark.parametrize("verb", [evaluate, predict, export])
def test_a_damaged_checkpoint_that_the_caller_names_is_an_error(estimator: Any, verb: Callable[..., int]) -> None:
    named = f"{estimator.model_dir}/model.ckpt-4"
    with pytest.raises(CheckpointDamagedError, match=r"model\.ckpt-4"):
        verb(estimator, checkpoint_path=named)
    assert verb(estimator, checkpoint_path=f"{estimator.model_dir}/model.ckpt-2") > 0


def test_a_prediction_that_has_begun_keeps_its_checkpoint(estimator: Any, model_dir: str) -> None:
    predictions = estimator.predict(one_pass_input_fn)
    next(predictions)
    marks = [name for name in Storage().list_dir(model_dir) if name.startswith(".reading-")]
    assert marks
    assert all(name.endswith("model.ckpt-2") for name in marks)
    predictions.close()
    assert not [name for name in Storage().list_dir(model_dir) if name.startswith(".reading-")]


def test_without_an_intact_checkpoint_training_and_evaluation_fail(estimator: Any) -> None:
    for step in (0, 2):
        flip_a_byte(f"{estimator.model_dir}/model.ckpt-{step}.data-00000-of-00001")
    with pytest.raises(CheckpointDamagedError, match="to train from the beginning"):
        estimator.train(endless_input_fn, steps=1)
    with pytest.raises(CheckpointDamagedError):
        evaluate(estimator)


def test_user_errors_are_no_reason_to_fall_back(in_process: Make, model_dir: str) -> None:
    calls = []

    def broken_input_fn() -> Any:
        calls.append(1)
        raise ValueError("mine")

    estimator = in_process(linear_model_fn, params={}, model_dir=model_dir, save_checkpoints_steps=2)
    estimator.train(endless_input_fn, steps=4, saving_listeners=EACH_SAVE_ARRIVES)
    with pytest.raises(ValueError, match="mine"):
        estimator.evaluate(broken_input_fn)
    assert len(calls) == 1
    assert np.isfinite(estimator.evaluate(one_pass_input_fn)["loss"])
