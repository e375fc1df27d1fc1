"""One driver at a time trains in a model_dir: concurrent drivers, and a driver whose lease was taken over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from support.models import endless_input_fn, linear_model_fn, one_pass_input_fn

from ray_estimator import ModelDirInUseError, WriterFencedError
from ray_estimator._checkpoints.lease import hold
from ray_estimator._checkpoints.writers import Record, Token
from ray_estimator._process.identity import Process
from ray_estimator._runtime.inline_runtime import InlineRuntime
from ray_estimator._storage.storage import Storage

v1 = tf.compat.v1

SCRIPT = Path(__file__).with_name("driver_script.py")
START_SECS = 200.0


class EachStep(v1.train.SessionRunHook):
    """Calls a function after every step."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self._call = call

    def before_run(self, run_context: Any) -> Any:
        return v1.train.SessionRunArgs("control/step_after:0")

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self._call(int(run_values.results))


def writers_of(estimator: Any) -> list[str]:
    return sorted(os.listdir(Path(estimator.model_dir) / ".writers"))


def wait_for_a_checkpoint(estimator: Any, step: int) -> None:
    """Return when this or a later step is published."""
    deadline = time.monotonic() + START_SECS
    while (newest := estimator.latest_checkpoint()) is None or int(newest.rpartition("-")[2]) < step:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def be_taken_over(model_dir: str) -> None:
    """Take the lease as another driver, as if this one had missed its heartbeats."""
    other = Record.begin(Process("elsewhere", 77, "another boot", 5))
    Storage().create_bytes(f"{model_dir}/.writers/{Token(9).file_name}", other.to_bytes())


def test_a_second_training_in_this_process_is_refused_and_the_first_continues(in_process: Callable[..., Any]) -> None:
    first, second = (in_process(linear_model_fn, params={}) for _ in range(2))
    refused: list[ModelDirInUseError] = []

    def train_too(step: int) -> None:
        if step == 2:
            with pytest.raises(ModelDirInUseError) as caught:
                second.train(endless_input_fn, steps=1)
            refused.append(caught.value)

    first.train(endless_input_fn, steps=3, hooks=[EachStep(train_too)])

    assert [(error.model_dir, error.pid) for error in refused] == [(first.model_dir, os.getpid())]
    assert first.latest_checkpoint().endswith("-3")


def test_the_next_training_of_the_same_driver_is_free_at_once(in_process: Callable[..., Any]) -> None:
    estimator = in_process(linear_model_fn, params={})
    with pytest.raises(ZeroDivisionError):
        estimator.train(endless_input_fn, steps=1, hooks=[EachStep(lambda step: 1 // 0)])
    estimator.train(endless_input_fn, steps=1)
    estimator.train(endless_input_fn, steps=1)

    assert estimator.latest_checkpoint().endswith("-2")
    assert writers_of(estimator) == [
        *("00000002-0001.json", "00000002.json"),
        *("00000003-0001.json", "00000003.json"),
    ]


def test_reading_needs_no_lease(in_process: Callable[..., Any]) -> None:
    estimator = in_process(linear_model_fn, params={})
    estimator.train(endless_input_fn, steps=1)

    with hold(estimator.model_dir, Storage(), on_loss=pytest.fail):
        assert estimator.evaluate(one_pass_input_fn)["global_step"] == 1
        assert len(list(estimator.predict(one_pass_input_fn))) > 0


def test_steps_count_from_the_end_of_the_previous_run(
    in_process: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, estimator = (in_process(linear_model_fn, params={}) for _ in range(2))

    def meanwhile(runtime: InlineRuntime) -> None:
        monkeypatch.undo()
        other.train(endless_input_fn, steps=4)

    monkeypatch.setattr(InlineRuntime, "check_model_dir", meanwhile)
    estimator.train(endless_input_fn, steps=2)
    assert estimator.latest_checkpoint().endswith("-6")

    monkeypatch.setattr(InlineRuntime, "check_model_dir", meanwhile)
    estimator.train(endless_input_fn, max_steps=8)
    assert estimator.latest_checkpoint().endswith("-10")


def test_a_training_that_was_taken_over_publishes_no_more(in_process: Callable[..., Any]) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=2)
    steps = []

    def step_ended(step: int) -> None:
        steps.append(step)
        if step == 3:
            wait_for_a_checkpoint(estimator, 2)
            be_taken_over(estimator.model_dir)

    with pytest.raises(WriterFencedError, match="taken over by process 77 on elsewhere"):
        estimator.train(endless_input_fn, steps=100_000, hooks=[EachStep(step_ended)])

    assert estimator.latest_checkpoint().endswith("-2")
    assert steps[-1] < 100_000
    assert tf.train.load_checkpoint(estimator.latest_checkpoint()).get_tensor("global_step") == 2


@pytest.fixture
def driver(tmp_path: Path) -> Any:
    """Another driver, in its own process, which trains endlessly in `tmp_path / "model"`."""
    path = os.pathsep.join([str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(SCRIPT), str(tmp_path / "model")]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_second_driver_is_refused_until_the_first_is_killed_and_then_continues_at_once(
    in_process: Callable[..., Any], driver: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    estimator = in_process(linear_model_fn, params={})
    wait_for_a_checkpoint(estimator, 20)
    with pytest.raises(ModelDirInUseError, match=f"process {driver.pid} on host") as refused:
        estimator.train(endless_input_fn, steps=3)
    assert refused.value.pid == driver.pid
    assert driver.poll() is None

    driver.kill()
    driver.wait()
    assert "Waiting for its heartbeat" in caplog.text
    caplog.clear()
    reached = int(estimator.latest_checkpoint().rpartition("-")[2])
    estimator.train(endless_input_fn, steps=3)
    assert "Waiting for its heartbeat" not in caplog.text
    assert estimator.latest_checkpoint().endswith(f"-{reached + 3}")
