"""Training continues in a model_dir of tf.estimator: a real one, and variations of its parts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support import old_runs
from support.old_runs import endless_input_fn, one_pass_input_fn, train_as_before, variables_in
from support.recording import published_steps, saved_steps, scalars

from ray_estimator import CheckpointNotFoundError, EstimatorSpec
from ray_estimator.export import ServingInputReceiver

ARCHIVE = Path(__file__).parents[1] / "data" / "tf_estimator_2_15.tar.gz"

Make = Callable[..., Any]

model_fn = old_runs.model_of(EstimatorSpec)

INTERVALS = {"save_checkpoints_steps": 5, "save_summary_steps": 5, "keep_checkpoint_max": 3, "tf_random_seed": 1}


def steps_by_file(model_dir: str) -> dict[str, set[int]]:
    return {"files": set(saved_steps(model_dir)), "state": set(published_steps(model_dir))}


# What tf.estimator 2.15 wrote


@pytest.fixture
def archived(tmp_path: Path) -> Path:
    """The unpacked archive: a model_dir of tf.estimator 2.15 after 12 steps, and the results there."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "archived", filter="data")
    return tmp_path / "archived"


@pytest.fixture
def expected(archived: Path) -> Any:
    return np.load(archived / "expected.npz")


@pytest.fixture
def old(in_process: Make, archived: Path) -> Any:
    return in_process(model_fn, model_dir=archived / "model_dir", **INTERVALS)


def test_its_variables_are_read(old: Any) -> None:
    names = old.get_variable_names()

    assert {"input/words", "input/words/Adam_1", "beta1_power", "outputs/bias/ExponentialMovingAverage"} < set(names)
    assert old.get_variable_value("input/words").shape == (6, 3)
    assert old.get_variable_value("global_step") == 12
    assert old.latest_checkpoint() == f"{old.model_dir}/model.ckpt-12"


def test_it_is_evaluated(old: Any, expected: Any) -> None:
    result = old.evaluate(one_pass_input_fn)

    assert result == pytest.approx({name: float(expected[f"evaluated/{name}"]) for name in result}, rel=1e-5)
    assert result.keys() == {"error", "large", "loss", "global_step"}
    events = scalars(f"{old.model_dir}/eval", "loss")
    assert events == {12: pytest.approx(result["loss"])}
    assert len(list(Path(old.model_dir).glob("eval/events.*"))) == 2


def test_it_predicts(old: Any, expected: Any) -> None:
    rows = [row["y"] for row in old.predict(one_pass_input_fn)]

    np.testing.assert_allclose(rows, expected["predicted"], rtol=1e-4, atol=1e-6)


def test_training_continues_to_the_same_weights_as_tf_estimator(old: Any, expected: Any) -> None:
    old.train(endless_input_fn, steps=8)

    names = {name.partition("/")[2] for name in expected if name.startswith("variables/")}
    assert set(old.get_variable_names()) == names
    for name in names:
        theirs = expected[f"variables/{name}"]
        np.testing.assert_allclose(old.get_variable_value(name), theirs, rtol=1e-4, atol=1e-6, err_msg=name)
    assert old.get_variable_value("global_step") == 20


def test_max_steps_include_the_earlier_steps(old: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert old.train(endless_input_fn, max_steps=12).get_variable_value("global_step") == 12
    assert "Skipping training since max_steps has already saved." in caplog.messages
    assert old.train(endless_input_fn, max_steps=14).get_variable_value("global_step") == 14


def test_old_checkpoints_are_pruned_by_new_ones(old: Any) -> None:
    assert steps_by_file(old.model_dir) == {"files": {5, 10, 12}, "state": {5, 10, 12}}

    old.train(endless_input_fn, steps=5)  # saves 12 again, then 17

    assert steps_by_file(old.model_dir) == {"files": {10, 12, 17}, "state": {10, 12, 17}}
    assert not list(Path(old.model_dir).glob("model.ckpt-5.*"))


def test_its_event_files_are_continued(old: Any) -> None:
    before = scalars(old.model_dir, "loss")

    old.train(endless_input_fn, steps=8)

    after = scalars(old.model_dir, "loss")
    assert before.items() <= after.items()
    assert max(before) <= 12 < max(after)


def test_it_is_exported(old: Any, expected: Any, tmp_path: Path) -> None:
    def serving_input_receiver_fn() -> ServingInputReceiver:
        x = v1.placeholder(tf.float32, [None, 4], "x")
        ids = v1.placeholder(tf.int32, [None, 3], "ids")
        return ServingInputReceiver({"x": x, "ids": ids}, {"x": x, "ids": ids})

    exported = old.export_savedmodel(tmp_path / "export", serving_input_receiver_fn)

    served = tf.saved_model.load(exported).signatures["serving_default"]
    answer = served(x=tf.constant(old_runs.X), ids=tf.constant(old_runs.IDS))["y"]
    np.testing.assert_allclose(answer, expected["predicted"], rtol=1e-4, atol=1e-6)


def test_tensorflows_own_parts_write_the_same_variables(archived: Path, tmp_path: Path) -> None:
    """The facts that the tests below rely on."""
    train_as_before(str(tmp_path / "written"), model_fn, last_step=12)

    ours, theirs = variables_in(str(tmp_path / "written")), variables_in(str(archived / "model_dir"))
    assert {name: each.shape for name, each in ours.items()} == {name: each.shape for name, each in theirs.items()}
    files = [
        {path.name for path in Path(folder).iterdir() if "tfevents" not in path.name and path.is_file()}
        for folder in (tmp_path / "written", archived / "model_dir")
    ]
    assert files[0] == files[1]


# What TensorFlow's own parts write


without_averages = old_runs.model_of(EstimatorSpec, averages=False)


def with_references(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    """The model with reference variables, as in TensorFlow 1."""
    with v1.variable_scope(v1.get_variable_scope(), use_resource=False):
        return without_averages(features, labels, mode)


@pytest.mark.parametrize("relative_paths", [True, False], ids=["relative", "absolute"])
@pytest.mark.parametrize(
    ("before", "now"), [(model_fn, model_fn), (with_references, without_averages)], ids=["resources", "references"]
)
def test_training_continues_as_in_tf_estimator(
    in_process: Make, tmp_path: Path, before: Any, now: Any, relative_paths: bool
) -> None:
    old, there = tmp_path / "old", tmp_path / "there"
    train_as_before(str(old), before, last_step=12, relative_paths=relative_paths)
    shutil.copytree(old, there)
    old_runs.write_evaluation(str(old), 12, loss=1.5)

    here = in_process(now, model_dir=old, **INTERVALS).train(endless_input_fn, steps=8)
    train_as_before(str(there), before, last_step=20, relative_paths=relative_paths)

    ours, theirs = variables_in(here.latest_checkpoint()), variables_in(f"{there}/model.ckpt-20")
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-7, err_msg=name)
    result = here.evaluate(one_pass_input_fn)
    assert scalars(here.eval_dir(), "loss") == {12: 1.5, 20: pytest.approx(result["loss"])}
    assert result["global_step"] == 20


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree], ids=["moved", "copied"])
def test_a_directory_with_absolute_paths_is_read_where_it_is(
    in_process: Make, tmp_path: Path, how: Callable[..., Any]
) -> None:
    train_as_before(str(tmp_path / "old"), model_fn, last_step=12, relative_paths=False)
    assert f'"{tmp_path}/old/model.ckpt-12"' in (tmp_path / "old" / "checkpoint").read_text()
    how(tmp_path / "old", tmp_path / "new")

    estimator = in_process(model_fn, model_dir=tmp_path / "new", **INTERVALS)
    assert estimator.latest_checkpoint() == f"{tmp_path}/new/model.ckpt-12"
    estimator.train(endless_input_fn, steps=5)

    assert steps_by_file(estimator.model_dir) == {"files": {10, 12, 17}, "state": {10, 12, 17}}
    assert str(tmp_path) not in (tmp_path / "new" / "checkpoint").read_text()
    if how is shutil.copytree:
        assert steps_by_file(str(tmp_path / "old")) == {"files": {5, 10, 12}, "state": {5, 10, 12}}


def test_a_state_file_of_missing_checkpoints_does_not_restart_training(in_process: Make, tmp_path: Path) -> None:
    train_as_before(str(tmp_path / "old"), model_fn, last_step=12, relative_paths=False)
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "old" / "checkpoint", tmp_path / "new" / "checkpoint")
    shutil.move(tmp_path / "old", tmp_path / "gone")

    with pytest.raises(CheckpointNotFoundError, match=rf"{tmp_path}/old/model\.ckpt-12.*{tmp_path}/new/checkpoint"):
        in_process(model_fn, model_dir=tmp_path / "new").train(endless_input_fn, steps=1)


def test_training_continues_in_a_remote_copy(in_process: Make, tmp_path: Path) -> None:
    import fsspec

    train_as_before(str(tmp_path / "old"), model_fn, last_step=12, relative_paths=False)
    fsspec.filesystem("memory").put(str(tmp_path / "old"), "/old-runs/model", recursive=True)

    estimator = in_process(model_fn, model_dir="memory://old-runs/model", **INTERVALS)
    estimator.train(endless_input_fn, steps=5)

    assert estimator.latest_checkpoint() == "memory://old-runs/model/model.ckpt-17"
    assert estimator.evaluate(one_pass_input_fn)["global_step"] == 17


def test_tf_layers_continue_with_legacy_keras(tmp_path: Path) -> None:
    script = Path(__file__).parent / "old_layers_script.py"
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": str(script.parents[1])}
    ended = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "tf.layers go on" in ended.stdout
