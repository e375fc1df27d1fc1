"""Ctrl-C and SIGTERM in process: training stops after the step, saves, and then raises."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow.compat.v1 as v1
from support.models import endless_input_fn, linear_model_fn, one_pass_input_fn

from ray_estimator import EvalSpec, TrainSpec, train_and_evaluate

Make = Callable[..., Any]


class Signals(v1.train.SessionRunHook):
    """Sends a signal to this process during one step, and again during another."""

    def __init__(self, at_step: int, number: int, *, again: bool = False) -> None:
        self._at_step = at_step
        self._number = number
        self._again = again
        self._steps = 0

    def before_run(self, run_context: Any) -> None:
        self._steps += 1
        if self._steps == self._at_step:
            signal.raise_signal(self._number)
            if self._again:
                signal.raise_signal(self._number)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_saves_the_step_and_is_raised_then(
    in_process: Make, caplog: pytest.LogCaptureFixture, number: int, error: type[BaseException]
) -> None:
    estimator = in_process(linear_model_fn, params={})
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    with caplog.at_level(logging.WARNING), pytest.raises(error):
        estimator.train(endless_input_fn, hooks=[Signals(7, number)])
    assert estimator.latest_checkpoint().endswith("-7")
    assert "stopped at step 7; the checkpoint of step 7 is published" in caplog.text
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    estimator.train(endless_input_fn, max_steps=10)
    assert estimator.latest_checkpoint().endswith("-10")


def test_a_second_interrupt_ends_at_once(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={})
    with pytest.raises(KeyboardInterrupt):
        estimator.train(endless_input_fn, hooks=[Signals(7, signal.SIGINT, again=True)])
    assert estimator.latest_checkpoint().endswith("-0")


def test_an_interrupt_in_the_last_step_is_raised_too(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={})
    with pytest.raises(KeyboardInterrupt):
        estimator.train(endless_input_fn, max_steps=7, hooks=[Signals(7, signal.SIGINT)])
    assert estimator.latest_checkpoint().endswith("-7")


def test_after_an_interrupt_nothing_is_evaluated(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={})
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(
            estimator,
            TrainSpec(endless_input_fn, max_steps=20, hooks=[Signals(7, signal.SIGINT)]),
            EvalSpec(one_pass_input_fn, throttle_secs=1e6),
        )
    assert estimator.latest_checkpoint().endswith("-7")
    # The first checkpoint is none to evaluate, and the last one was not evaluated.
    assert not (Path(estimator.model_dir) / "eval").exists()
