"""TensorFlow's hooks in evaluate and predict: each runs around every batch, at the checkpoint's step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.hook_models import EveryOtherStep, counting_input_fn, slope_model_fn, timelines
from support.probes import notes
from support.recording import RecordingListener, events, saved_steps

from ray_estimator import EstimatorSpec

Make = Callable[..., Any]
Run = Callable[..., Any]

STEPS = 3
WEIGHT = -0.1 * STEPS
NUM_BATCHES = 6


@pytest.fixture(params=["evaluate", "predict"])
def run(request: pytest.FixtureRequest, in_process: Make) -> Run:
    """Train for three steps, then evaluate or predict six batches with the hooks of ``run(hooks)``."""
    verb: str = request.param

    def run_verb(
        hooks: list[Any], model_fn: Callable[..., EstimatorSpec] = slope_model_fn, num_batches: int = NUM_BATCHES
    ) -> Any:
        in_process(slope_model_fn).train(counting_input_fn, max_steps=STEPS)
        outcome = getattr(in_process(model_fn), verb)(lambda: counting_input_fn(num_batches), hooks=hooks)
        return outcome if verb == "evaluate" else list(outcome)

    return run_verb


def read_of_weight() -> tf.Tensor:
    return v1.get_default_graph().get_tensor_by_name("weight/Read/ReadVariableOp:0")


def logged(caplog: pytest.LogCaptureFixture, start: str) -> list[str]:
    return [message.split(" (")[0] for message in caplog.messages if message.startswith(start)]


def test_hooks_are_those_of_the_verb(run: Run, tmp_path: Path) -> None:
    """Hooks of the spec run in the mode that they are for only."""
    folder = str(tmp_path)

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        fields = {"eval": "evaluation_hooks", "infer": "prediction_hooks"}
        wanted = fields.pop(mode)
        (unwanted,) = fields.values()

        def bad() -> Any:
            raise AssertionError

        refused = v1.train.FeedFnHook(bad)
        spec = slope_model_fn(features, labels, mode)
        return spec._replace(**{wanted: [EveryOtherStep(folder)], unwanted: [refused], "training_hooks": [refused]})

    run([], model_fn)

    assert notes(folder, "line")[0] == [[batch, pytest.approx(WEIGHT)] for batch in (0, 2, 4)]


def test_logging_tensor_hook(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    hook = v1.train.LoggingTensorHook({"mean": "seen", "weight": "line:0"}, every_n_iter=4)

    with caplog.at_level(logging.INFO):
        run([hook])

    assert logged(caplog, "mean = ") == [f"mean = {batch:.1f}, weight = -0.3" for batch in (0, 4)]


def test_feed_fn_hook(run: Run) -> None:
    result = run([v1.train.FeedFnHook(lambda: {"slope:0": 10.0})])

    if isinstance(result, dict):
        assert result["line"] == result["loss"] == pytest.approx(10 * WEIGHT)
    else:
        expected = np.repeat(np.arange(NUM_BATCHES), 2) + 10 * WEIGHT
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_final_ops_hook(run: Run) -> None:
    hooks = []

    def final_hook() -> v1.train.FinalOpsHook:
        hooks.append(v1.train.FinalOpsHook({"weight": read_of_weight(), "step": v1.train.get_global_step()}))
        return hooks[0]

    run([final_hook])

    assert hooks[0].final_ops_values == pytest.approx({"weight": WEIGHT, "step": STEPS})


def test_summary_saver_hook(run: Run, tmp_path: Path) -> None:
    def hook() -> v1.train.SessionRunHook:
        seen = v1.summary.scalar("own", v1.get_default_graph().get_tensor_by_name("seen:0"))
        return v1.train.SummarySaverHook(save_steps=1, output_dir=str(tmp_path / "own"), summary_op=seen)

    run([hook])

    written = [(event.step, value.simple_value) for event in events(tmp_path / "own") for value in event.summary.value]
    assert written == [(STEPS, float(batch)) for batch in range(NUM_BATCHES)]


def test_step_counter_hook(run: Run, tmp_path: Path) -> None:
    """The step does not change, so there is no rate; the hook's file is complete when the method returns."""
    run([v1.train.StepCounterHook(every_n_steps=1, output_dir=str(tmp_path / "rate"))])

    first, *_ = events(tmp_path / "rate")
    assert first.file_version


def test_profiler_hook(run: Run, tmp_path: Path) -> None:
    def hook() -> v1.train.SessionRunHook:
        return v1.train.ProfilerHook(save_secs=1e-9, output_dir=str(tmp_path / "profile"))

    run([hook], num_batches=2)

    seen = timelines(tmp_path / "profile")
    assert list(seen) == [STEPS]
    assert "ReadVariableOp" in seen[STEPS]
    tags = [event.tagged_run_metadata.tag for event in events(tmp_path / "profile")]
    assert tags.count(f"step_{STEPS}") == 1


def test_global_step_waiter_hook(run: Run) -> None:
    run([v1.train.GlobalStepWaiterHook(STEPS)])

    with pytest.raises(ValueError, match=r"waits for step 4, but this run starts at step 3.*would never return"):
        run([v1.train.GlobalStepWaiterHook(STEPS + 1)])


@pytest.mark.parametrize("fails", [True, False])
def test_nan_tensor_hook(run: Run, fails: bool) -> None:
    def hook() -> v1.train.SessionRunHook:
        seen = v1.get_default_graph().get_tensor_by_name("seen:0")
        return v1.train.NanTensorHook(tf.where(seen < 2, 1.0, np.nan), fail_on_nan_loss=fails)

    if fails:
        with pytest.raises(v1.train.NanLossDuringTrainingError):
            run([hook])
        return
    result = run([hook])
    if isinstance(result, dict):
        assert result["seen"] == (0 + 1 + 2) / 3
    else:
        assert len(result) == 2 * 3


@pytest.mark.parametrize(("last_step", "num_batches"), [(STEPS, 1), (STEPS + 10, NUM_BATCHES)])
def test_stop_at_step_hook(run: Run, last_step: int, num_batches: int) -> None:
    """As in tf.estimator it reads the global step, which is the checkpoint's."""
    result = run([v1.train.StopAtStepHook(last_step=last_step)])

    if isinstance(result, dict):
        assert result["seen"] == np.arange(num_batches).mean()
    else:
        assert len(result) == 2 * num_batches


def test_checkpoint_saver_hook(run: Run, tmp_path: Path) -> None:
    listener = RecordingListener()
    hook = v1.train.CheckpointSaverHook(str(tmp_path / "saved"), save_steps=100, listeners=[listener])

    run([hook])

    assert saved_steps(tmp_path / "saved") == [STEPS]
    assert saved_steps(tmp_path / "model") == [0, STEPS]
    reader = tf.train.load_checkpoint(str(tmp_path / "saved"))
    assert reader.get_tensor("weight") == pytest.approx(WEIGHT)
    assert [method for method, _ in listener.calls] == ["begin", "before_save", "after_save", "end"]


def test_a_hook_with_a_second_or_step_timer(run: Run, tmp_path: Path) -> None:
    run([EveryOtherStep(str(tmp_path))])

    assert notes(tmp_path, "line")[0] == [[batch, pytest.approx(WEIGHT)] for batch in (0, 2, 4)]
