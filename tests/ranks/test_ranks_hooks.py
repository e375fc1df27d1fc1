"""TensorFlow's own hooks on two ranks, in evaluation and in prediction: each works around every step or batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.hook_models import (
    EveryOtherStep,
    NotingFinalOps,
    NotingListener,
    counting_input_fn,
    slope_model_fn,
    timelines,
)
from support.probes import note, notes, rank
from support.recording import published_steps, scalars

from ray_estimator import EstimatorSpec
from ray_estimator.errors import RanksDisagreeError

v1 = tf.compat.v1
STEPS = 6


def with_spec_hooks(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """`slope_model_fn` with hooks of the spec that note in a folder."""
    spec = slope_model_fn(features, labels, mode)
    folder = params["folder"]
    hooks = [NotingFinalOps(folder, v1.train.get_global_step())]
    return spec._replace(training_hooks=hooks, training_chief_hooks=[ChiefHook(folder)])


class ChiefHook(v1.train.SessionRunHook):
    """Notes the rank on which it begins, and adds a summary there."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def begin(self) -> None:
        note(self._folder, "chief", rank())
        v1.summary.scalar("of_chief", v1.get_default_graph().get_tensor_by_name("seen:0"))


def logged(folder: str, values: dict[str, Any]) -> str:
    note(folder, "logged", {name: float(value) for name, value in values.items()})
    return "noted"


def own_slope() -> dict[str, float]:
    return {"slope:0": 1.0 + 2.0 * rank()}


def summary_hook(folder: str) -> v1.train.SessionRunHook:
    line = v1.summary.scalar("own_line", v1.get_default_graph().get_tensor_by_name("line:0"), collections=[])
    return v1.train.SummarySaverHook(save_steps=3, output_dir=f"{folder}/summaries-{rank()}", summary_op=line)


def nan_hook() -> v1.train.SessionRunHook:
    return v1.train.NanTensorHook(v1.get_default_graph().get_tensor_by_name("seen:0"))


def profiler_hook(folder: str) -> v1.train.SessionRunHook:
    return v1.train.ProfilerHook(save_steps=4, output_dir=f"{folder}/profile-{rank()}")


def rate_hook(folder: str) -> v1.train.SessionRunHook:
    return v1.train.StepCounterHook(every_n_steps=2, output_dir=f"{folder}/rate-{rank()}")


def test_every_hook_works_on_two_workers(on_ranks: Callable[..., Any], tmp_path: Path) -> None:
    folder = str(tmp_path)
    for name in ("profile", "rate", "summaries"):
        for number in (0, 1):
            (tmp_path / f"{name}-{number}").mkdir()
    estimator = on_ranks(with_spec_hooks, params={"folder": folder}, save_summary_steps=2)

    hooks = [
        v1.train.LoggingTensorHook(
            {"line": "line", "seen": "seen:0"}, every_n_iter=4, formatter=partial(logged, folder)
        ),
        v1.train.StopAtStepHook(num_steps=STEPS),
        v1.train.FeedFnHook(own_slope),
        v1.train.GlobalStepWaiterHook(5),
        v1.train.CheckpointSaverHook(estimator.model_dir, save_steps=4, listeners=[NotingListener(folder)]),
        EveryOtherStep(folder),
        partial(summary_hook, folder),
        partial(rate_hook, folder),
        partial(profiler_hook, folder),
        nan_hook,
    ]
    estimator.train(partial(counting_input_fn, 100), hooks=hooks)

    # The slopes are 1 and 3, their mean is 2: the weight falls by 0.2 a step on both ranks.
    assert estimator.get_variable_value("weight") == pytest.approx(-0.2 * STEPS)
    assert estimator.get_variable_value("global_step") == STEPS
    for number in (0, 1):
        lines = [-0.2 * step * (1 + 2 * number) for step in range(STEPS)]
        assert notes(folder, "line")[number] == [[step, pytest.approx(lines[step])] for step in (0, 2, 4)]
        assert notes(folder, "logged")[number] == [
            {"line": pytest.approx(lines[step]), "seen": step} for step in (0, 4)
        ]
        assert notes(folder, "final")[number] == [[STEPS]]
        assert scalars(tmp_path / f"summaries-{number}", "own_line") == pytest.approx({1: lines[0], 4: lines[3]})
        assert list(scalars(tmp_path / f"rate-{number}", "global_step/sec")) == [3, 5]
        assert list(timelines(tmp_path / f"profile-{number}")) == [4]
    assert notes(folder, "chief") == {0: [0]}
    assert scalars(estimator.model_dir, "of_chief") == {1: 0.0, 3: 2.0, 5: 4.0}
    saved = [0, 4, STEPS]
    assert notes(folder, "listener") == {
        0: [
            ["begin", None],
            *([call, step] for step in saved for call in ("before_save", "after_save")),
            ["end", STEPS],
        ]
    }
    assert published_steps(estimator.model_dir) == saved

    of_tasks = tmp_path / "tasks"
    of_tasks.mkdir()
    hooks = [
        v1.train.FeedFnHook(dict_of_ten),
        v1.train.LoggingTensorHook(["line"], at_end=True, formatter=partial(logged, str(of_tasks))),
        EveryOtherStep(str(of_tasks)),
        NotingFinalOps(str(of_tasks), "slope:0"),
        v1.train.GlobalStepWaiterHook(STEPS),
        nan_hook,
    ]
    result = estimator.evaluate(counting_input_fn, hooks=hooks)
    rows = list(estimator.predict(counting_input_fn, hooks=hooks))

    line = pytest.approx(-2.0 * STEPS)
    assert result == {"line": line, "loss": line, "seen": 2.5, "global_step": STEPS}
    np.testing.assert_allclose(rows, np.repeat(np.arange(6), 2) - 2.0 * STEPS, rtol=1e-6)
    assert notes(of_tasks, "line")[0] == 2 * [[batch, line] for batch in (0, 2, 4)]
    assert notes(of_tasks, "final")[0] == 2 * [[1.0]]


def dict_of_ten() -> dict[str, float]:
    return {"slope:0": 10.0}


class OwnVariable(v1.train.SessionRunHook):
    """Makes a variable in begin, where nobody else has one."""

    def begin(self) -> None:
        v1.get_variable("own", [], initializer=v1.zeros_initializer())


def with_a_variable_on_the_chief(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    return slope_model_fn(features, labels, mode)._replace(training_chief_hooks=[OwnVariable()])


def test_what_hooks_make_on_one_rank_alone_when_they_begin_is_named(on_ranks: Callable[..., Any]) -> None:
    estimator = on_ranks(with_a_variable_on_the_chief)

    with pytest.raises(RanksDisagreeError, match=r"rank 0 has 'variable own:0 .*' where rank 1 has"):
        estimator.train(counting_input_fn)
