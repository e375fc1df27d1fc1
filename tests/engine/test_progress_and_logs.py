"""Progress display and logs of runs in this process."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from support import models

from ray_estimator import ServingInputReceiver

LINES = (
    r"training: step \d+/20  loss \S+  .*",
    r"trained to step 20: 20 steps in \S+ s, [\d,]+ examples/s after startup, loss \S+, checkpoint \S+/model\.ckpt-20",
    r"evaluated step 20 \(test\) in \S+ s: mae \S+, loss \S+",
    r"predicted 256 rows with step 20 in \S+ s",
    r"predicted 8 batches with step 20 in \S+ s",
    r"exported step 20 in \S+ s: \S+",
)


def receiver_fn() -> ServingInputReceiver:
    x = models.v1.placeholder(models.tf.float32, [None, 4], "x")
    return ServingInputReceiver({"x": x}, {"x": x})


def run_every_verb(estimator: Any, export_dir: Any) -> None:
    estimator.train(models.endless_input_fn, steps=20)
    estimator.evaluate(models.one_pass_input_fn, name="test")
    list(estimator.predict(models.one_pass_input_fn))
    list(estimator.predict(models.one_pass_input_fn, yield_single_examples=False))
    estimator.export_saved_model(export_dir, receiver_fn)


def test_training_shows_progress_and_each_verb_ends_with_one_line(
    in_process: Callable[..., Any], tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    run_every_verb(in_process(models.linear_model_fn, params={}), tmp_path / "export")
    shown = capsys.readouterr().err.splitlines()
    for expected in LINES:
        assert len([line for line in shown if re.fullmatch(expected, line)]) >= 1, (expected, shown)
    predicting = in_process(models.linear_model_fn, params={}).predict(models.one_pass_input_fn)
    next(predicting)
    predicting.close()
    assert "predicted" not in capsys.readouterr().err


def test_progress_false_is_silent(
    in_process: Callable[..., Any], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_every_verb(in_process(models.linear_model_fn, params={}, progress=False), tmp_path / "export")
    assert not re.search("train|evaluated|predicted|exported", capsys.readouterr().err)
