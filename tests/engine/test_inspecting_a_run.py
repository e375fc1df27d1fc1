"""`ray-estimator inspect` on a run that was trained and evaluated here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.models import endless_input_fn, linear_model_fn, one_pass_input_fn
from typer.testing import CliRunner

from ray_estimator.cli.app import app


def test_metrics_of_training_and_evaluations_are_those_of_the_run(
    in_process: Callable[..., Any], tmp_path: Path
) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=10, save_summary_steps=5)
    estimator.train(endless_input_fn, steps=10)
    estimator.evaluate(one_pass_input_fn)
    estimator.train(endless_input_fn, steps=10)
    metrics = estimator.evaluate(one_pass_input_fn)
    estimator.evaluate(one_pass_input_fn, name="held_out")
    model_dir = estimator.model_dir

    result = CliRunner().invoke(app, ["inspect", model_dir, "--json", "--last", "1"])
    shown = CliRunner().invoke(app, ["inspect", model_dir])

    answer = json.loads(result.stdout)
    assert (result.exit_code, shown.exit_code) == (0, 0)
    assert [each["step"] for each in answer["checkpoints"]] == [0, 10, 20]
    assert set(answer["metrics"]) == {"training", "eval", "eval_held_out"}
    assert list(answer["metrics"]["eval"]) == ["20"]
    assert answer["metrics"]["eval"]["20"]["loss"] == float(metrics["loss"])
    assert [set(metrics) for metrics in answer["metrics"]["training"].values()] == [{"loss"}]
    assert answer["writer"]["ended"]
    assert "eval_held_out" in shown.stdout
    assert f"{metrics['loss']:.6g}" in shown.stdout
