"""Experiment trackers: what TensorBoard reads from model_dir, and what is logged to MLflow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from cloudpickle import dumps, loads
from support import models
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from ray_estimator.trackers import mlflow_hook

Make = Callable[..., Any]

# TensorBoard


def test_tensorboard_finds_scalars_and_graph_of_training_and_a_run_for_each_evaluation(in_process: Make) -> None:
    estimator = in_process(models.linear_model_fn, params={}, save_summary_steps=5, log_step_count_steps=10)
    for max_steps in (20, 40):
        estimator.train(models.endless_input_fn, max_steps=max_steps)
        results = estimator.evaluate(models.one_pass_input_fn)
        estimator.evaluate(models.one_pass_input_fn, name="test")

    board = EventMultiplexer().AddRunsFromDirectory(estimator.model_dir)
    board.Reload()
    runs = board.Runs()
    assert set(runs) == {".", "eval", "eval_test"}
    assert set(runs["."]["scalars"]) == {"loss", "global_step/sec"}
    assert [event.step for event in board.Scalars(".", "loss")] == [1, 6, 11, 16, 21, 26, 31, 36]
    assert any(node.name == "dense/kernel" for node in board.Graph(".").node)
    for run in ("eval", "eval_test"):
        assert set(runs[run]["scalars"]) == {"loss", "mae"}
        assert [event.step for event in board.Scalars(run, "mae")] == [20, 40]
        assert board.Scalars(run, "mae")[-1].value == pytest.approx(results["mae"])


# MLflow


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[mlflow.ActiveRun]:
    """An active MLflow run in a local file store."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as active:
        yield active
    mlflow.set_tracking_uri(None)


def history(run: mlflow.ActiveRun, metric: str) -> dict[int, float]:
    return {each.step: each.value for each in mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)}


def test_mlflow_finds_params_losses_and_metrics(in_process: Make, run: mlflow.ActiveRun) -> None:
    estimator = in_process(models.linear_model_fn, params={"learning_rate": 0.1}, save_summary_steps=1)
    mlflow.log_params(estimator.params)
    hook = loads(dumps(mlflow_hook(every_n_steps=10)))  # it travels
    estimator.train(models.endless_input_fn, max_steps=25, hooks=[hook])
    results = estimator.evaluate(models.one_pass_input_fn)
    mlflow.log_metrics({f"eval_{name}": value for name, value in results.items()}, step=results["global_step"])

    found = mlflow.MlflowClient().get_run(run.info.run_id).data
    assert found.params == {"learning_rate": "0.1"}
    losses = history(run, "loss")
    assert list(losses) == [1, 11, 21, 25]
    board = EventMultiplexer().AddRunsFromDirectory(estimator.model_dir)
    board.Reload()
    by_step = {event.step: event.value for event in board.Scalars(".", "loss")}
    assert losses[11] == pytest.approx(by_step[11])
    assert all(rate > 0 for rate in history(run, "steps_per_second").values())
    assert history(run, "eval_mae") == {25: pytest.approx(results["mae"])}


def test_a_tracker_that_does_not_answer_does_not_end_training(
    in_process: Make, run: mlflow.ActiveRun, caplog: pytest.LogCaptureFixture
) -> None:
    estimator = in_process(models.linear_model_fn, params={})
    with caplog.at_level(logging.WARNING, logger="ray_estimator"):
        estimator.train(models.endless_input_fn, max_steps=5, hooks=[mlflow_hook("0" * 32, every_n_steps=1)])
    warnings = [record.getMessage() for record in caplog.records if "tracker" in record.getMessage()]
    assert len(warnings) == 1
    assert "Logging metrics of step 1 to the tracker failed; training continues: " in warnings[0]
    assert estimator.latest_checkpoint().endswith("model.ckpt-5")


def test_without_an_active_run_mlflow_hook_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"There is no active MLflow run.*mlflow\.start_run"):
        mlflow_hook()
