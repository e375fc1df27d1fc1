"""Where training on two ranks starts: from other checkpoints, from a run of tf.estimator, with tensors as input."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support import old_runs
from support.models import NUM_ROWS, X, Y, linear_model_fn, one_pass_input_fn
from support.probes import note, notes
from support.words import place_in, trained_words, words_model_fn

from ray_estimator import (
    Estimator,
    EstimatorSpec,
    InputEndedError,
    RunConfig,
    VocabInfo,
    WarmStartSettings,
)

v1 = tf.compat.v1


def words_input_fn(config: RunConfig, params: Any) -> tf.data.Dataset:
    note(params["folder"], "input", place_in(config))
    return tf.data.Dataset.from_tensors(({"word": [0, 1, 2, 3]}, [0.0])).repeat()


class NoteVariables(v1.train.SessionRunHook):
    """Notes this worker's copies of variables as they are when the session opens."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def after_create_session(self, session: Any, coord: Any) -> None:
        for variable in v1.global_variables():
            local = getattr(variable, "values", [variable])[0]
            note(self._folder, variable.op.name.replace("/", "."), session.run(local).tolist())


@pytest.fixture
def old(in_process: Callable[..., Any], tmp_path: Path) -> Any:
    """A table of four words, trained."""
    return trained_words(in_process, tmp_path / "old")


def test_a9_a10_two_workers_start_warm_and_know_their_place(
    on_ranks: Callable[..., Any], old: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "TF_CONFIG", '{"cluster": {"chief": ["x:1"], "ps": ["y:1"]}, "task": {"type": "ps", "index": 0}}'
    )
    (tmp_path / "old.txt").write_text("ape\nbee\ncat\ndog\n")
    (tmp_path / "new.txt").write_text("dog\nelk\nape\n")
    initializer = v1.random_normal_initializer(mean=100.0)
    info = VocabInfo(str(tmp_path / "new.txt"), 3, 1, str(tmp_path / "old.txt"), backup_initializer=initializer)
    settings = WarmStartSettings(old.model_dir, [".*"], {"table": info, "table/Momentum": info})
    params = {"words": 4, "scale": 1.0, "learning_rate": 0.0, "folder": str(tmp_path)}
    config = on_ranks(words_model_fn, params=params, tf_random_seed=5).config
    table, scale = old.get_variable_value("table"), old.get_variable_value("scale")

    estimator = Estimator(words_model_fn, None, config, params, warm_start_from=settings)
    estimator.train(words_input_fn, steps=1, hooks=[partial(NoteVariables, str(tmp_path))])

    # Old words moved to their new rows, slots too; new rows are random, and the same on both workers.
    noted = {name: notes(tmp_path, name) for name in ("table", "scale", "table.Momentum", "global_step")}
    for name, by_rank in noted.items():
        assert by_rank.keys() == {0, 1}
        assert by_rank[0] == by_rank[1], name
    (started,) = noted["table"][0]
    np.testing.assert_array_equal(np.float32(started)[[0, 2]], table[[3, 0]])
    new_rows = np.float32(started)[[1, 3]]
    assert np.all(np.abs(new_rows - 100.0) < 10.0)
    assert len(np.unique(new_rows)) == 4
    (slots,) = noted["table.Momentum"][0]
    np.testing.assert_array_equal(np.float32(slots)[[0, 2]], old.get_variable_value("table/Momentum")[[3, 0]])
    assert noted["scale"][0] == [pytest.approx(scale)]
    assert noted["global_step"][0] == [3]
    assert estimator.get_variable_value("global_step") == 4

    # RunConfig, in model_fn and in input_fn.
    places = notes(tmp_path, "train-model")
    assert notes(tmp_path, "input") == places
    addresses = places[0][0]["cluster"]["worker"]
    assert len(set(addresses)) == 2
    for rank in (0, 1):
        assert places[rank] == [
            {
                "model_dir": estimator.model_dir,
                "is_chief": rank == 0,
                "task_id": rank,
                "task_type": "worker",
                "num_worker_replicas": 2,
                "num_ps_replicas": 0,
                "global_id_in_cluster": rank,
                "master": f"grpc://{addresses[rank]}",
                "evaluation_master": "",
                "service": None,
                "tf_random_seed": 5,
                "cluster": {"worker": addresses},
                "soft": True,
            }
        ]


class CountSteps(v1.train.SessionRunHook):
    """Counts the steps that it sees, and notes them at the end."""

    def __init__(self, folder: str) -> None:
        self.steps = 0
        self._folder = folder

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self.steps += 1

    def end(self, session: Any) -> None:
        note(self._folder, "counted", self.steps)


def halves_of_batches(input_context: Any) -> tf.data.Dataset:
    """This worker's share of every batch."""
    size = old_runs.BATCH_SIZE // input_context.num_input_pipelines
    start = size * input_context.input_pipeline_id

    def share(tensor: tf.Tensor) -> tf.Tensor:
        return tensor[start : start + size]

    return old_runs.endless_input_fn().map(lambda *batch: tf.nest.map_structure(share, batch))


def test_a_run_of_tf_estimators_goes_on_with_two_workers(on_ranks: Callable[..., Any], tmp_path: Path) -> None:
    """Partitioned variables, which the strategy makes whole, slots and moving averages included."""
    with tarfile.open(Path(__file__).parents[1] / "data" / "tf_estimator_2_15.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    expected = np.load(tmp_path / "expected.npz")

    hook = CountSteps(str(tmp_path))
    estimator = on_ranks(old_runs.model_of(EstimatorSpec), model_dir=tmp_path / "model_dir")
    estimator.train(halves_of_batches, steps=8, hooks=[hook])

    # Hooks run on every worker, as copies that do not come back.
    assert notes(tmp_path, "counted") == {0: [8], 1: [8]}
    assert hook.steps == 0
    variables = old_runs.variables_in(str(tmp_path / "model_dir"))
    assert {f"variables/{name}" for name in variables} == {name for name in expected if name.startswith("variables/")}
    for name, value in variables.items():
        np.testing.assert_allclose(value, expected[f"variables/{name}"], rtol=1e-3, atol=1e-5, err_msg=name)
    assert estimator.evaluate(old_runs.one_pass_input_fn)["global_step"] == 20


def tensors_of_a_queue_and_an_iterator() -> Any:
    """Batches of 32 rows, twice over, times one."""
    x, y = v1.train.batch(v1.train.slice_input_producer([X, Y], num_epochs=2, shuffle=False), batch_size=32)
    ones = v1.data.make_initializable_iterator(tf.data.Dataset.from_tensors(1.0).repeat())
    v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, ones.initializer)
    return x * ones.get_next(), y


def test_a2_4_tensors_feed_two_workers_and_their_end_is_an_error(on_ranks: Callable[..., Any]) -> None:
    steps = 2 * NUM_ROWS // 32
    estimator = on_ranks(linear_model_fn, params={"learning_rate": 0.1}, save_checkpoints_steps=steps)

    with pytest.raises(InputEndedError, match=r"The input of rank \d ended, and input_fn returns tensors"):
        estimator.train(tensors_of_a_queue_and_an_iterator)

    assert estimator.get_variable_value("global_step") == steps
    assert estimator.evaluate(one_pass_input_fn)["loss"] < 1.0
