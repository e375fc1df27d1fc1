"""The last step of a training run, an absolute one that is known before it starts."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from tensorflow.compat.v1.train import SessionRunHook, StopAtStepHook

from ray_estimator._jobs.last_step import last_step_of, split_stop_hooks


@pytest.mark.parametrize(
    ("steps", "max_steps", "hooks_last_step", "last_step"),
    [
        (None, None, None, None),
        (5, None, None, 105),
        (None, 120, None, 120),
        (None, None, 130, 130),
        (5, None, 103, 103),
        (5, None, 130, 105),
        (None, 120, 110, 110),
    ],
)
def test_the_earliest_limit_is_the_last_step(
    steps: int | None, max_steps: int | None, hooks_last_step: int | None, last_step: int | None
) -> None:
    assert last_step_of(100, steps, max_steps, hooks_last_step) == last_step


def test_stop_at_step_hooks_become_a_step_and_leave_the_list() -> None:
    other = SessionRunHook()

    hooks, last_step = split_stop_hooks([StopAtStepHook(num_steps=10), other, StopAtStepHook(last_step=107)], 100)

    assert hooks == [other]
    assert last_step == 107


def test_a_number_of_steps_counts_from_the_start_of_the_run() -> None:
    assert split_stop_hooks([StopAtStepHook(num_steps=10)], 100) == ([], 110)


def test_a_subclass_of_the_stop_hook_stays_a_hook() -> None:
    class StopWithANote(StopAtStepHook):
        pass

    hook = StopWithANote(num_steps=10)

    assert split_stop_hooks([hook], 100) == ([hook], None)


def test_factories_stay_in_the_list() -> None:
    hooks: list[Any] = [lambda: StopAtStepHook(num_steps=10)]

    assert split_stop_hooks(hooks, 100) == (hooks, None)


def test_without_tensorflow_no_hook_can_be_a_stop_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorflow")
    hooks = [object()]

    assert split_stop_hooks(hooks, 100) == (hooks, None)
    assert "tensorflow" not in sys.modules
