"""Warm start: sources, variables, names, vocabularies, and methods."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from ray.train import ScalingConfig
from support import worlds
from support.models import endless_input_fn, linear_model_fn, one_pass_input_fn
from support.recording import EACH_SAVE_ARRIVES

from ray_estimator import (
    CheckpointNotFoundError,
    Estimator,
    EstimatorSpec,
    ModeKeys,
    RunConfig,
    VocabInfo,
    WarmStartSettings,
)
from ray_estimator.export import TensorServingInputReceiver

Make = Callable[..., Any]


@pytest.fixture
def trained(in_process: Make, tmp_path: Path) -> Any:
    """A trained model, whose weights differ from the initial ones."""
    estimator = in_process(linear_model_fn, params={"learning_rate": 0.1}, model_dir=tmp_path / "trained")
    return estimator.train(endless_input_fn, steps=5)


@pytest.fixture
def warm(tmp_path: Path) -> Make:
    """Creates Estimators whose training leaves the weights unchanged."""

    def make(warm_start_from: Any, model_fn: Callable[..., Any] = linear_model_fn) -> Estimator:
        config = RunConfig(scaling_config=ScalingConfig(num_workers=0))
        params = {"learning_rate": 0.0}
        return Estimator(model_fn, tmp_path / "warm", config, params, warm_start_from=warm_start_from)

    return make


def value(estimator: Any, name: str) -> Any:
    return estimator.get_variable_value(name)


def equal(estimator: Any, other: Any, name: str) -> bool:
    return np.array_equal(value(estimator, name), value(other, name))


def serving_input_receiver_fn() -> TensorServingInputReceiver:
    x = v1.placeholder(tf.float32, [None, 4])
    return TensorServingInputReceiver(x, x)


# What it starts from (A1.10)


@pytest.mark.parametrize("kind", [str, str.encode, Path, WarmStartSettings], ids=["str", "bytes", "path", "settings"])
def test_a1_10_a_path_warm_starts_every_trainable_variable(trained: Any, warm: Make, kind: Callable[..., Any]) -> None:
    estimator = warm(kind(trained.latest_checkpoint())).train(endless_input_fn, steps=1)

    assert equal(estimator, trained, "dense/kernel")
    assert equal(estimator, trained, "dense/bias")
    assert value(estimator, "global_step") == 1


def test_a1_10_a_model_dir_stands_for_its_newest_checkpoint(trained: Any, warm: Make) -> None:
    assert equal(warm(trained.model_dir).train(endless_input_fn, steps=1), trained, "dense/kernel")


@pytest.mark.parametrize("kind", [str, WarmStartSettings])
def test_a1_10_a_saved_model_stands_for_its_variables(
    trained: Any, warm: Make, tmp_path: Path, kind: Callable[[str], Any]
) -> None:
    exported = trained.export_savedmodel(tmp_path / "export", serving_input_receiver_fn)

    estimator = warm(kind(exported)).train(endless_input_fn, steps=1)

    assert equal(estimator, trained, "dense/kernel")
    assert equal(estimator, trained, "dense/bias")


def test_a1_10_a_relative_path_counts_from_the_drivers_directory(
    trained: Any, warm: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(Path(trained.model_dir).parent)

    with caplog.at_level(logging.INFO):
        estimator = warm("trained").train(endless_input_fn, steps=1)

    assert equal(estimator, trained, "dense/kernel")


def test_a1_10_a_remote_checkpoint_is_fetched(in_process: Make, warm: Make) -> None:
    trained = in_process(linear_model_fn, params={"learning_rate": 0.1}, model_dir="memory://a1-10/model")
    trained.train(endless_input_fn, steps=5)

    assert equal(warm(trained.model_dir).train(endless_input_fn, steps=1), trained, "dense/kernel")


@pytest.mark.parametrize("given", [3, ["path"], {"ckpt_to_initialize_from": "path"}])
def test_a1_10_another_kind_is_refused(warm: Make, given: Any) -> None:
    with pytest.raises(ValueError, match="warm_start_from must be a string or a WarmStartSettings, instead got <class"):
        warm(given)


def test_a1_10_nowhere_is_refused_before_anything_is_built(warm: Make, tmp_path: Path) -> None:
    estimator = warm(str(tmp_path / "nowhere"), lambda features, params: pytest.fail("model_fn was called"))

    for verb in (estimator.train, estimator.evaluate, lambda input_fn: next(estimator.predict(input_fn))):
        with pytest.raises(CheckpointNotFoundError, match=f"there are no files {tmp_path / 'nowhere'}"):
            verb(endless_input_fn)


@pytest.mark.parametrize("path", [None, ""])
def test_a10_a_checkpoint_is_needed(path: Any) -> None:
    with pytest.raises(ValueError, match="`ckpt_to_initialize_from` MUST be set in WarmStartSettings"):
        WarmStartSettings(path)


# Which variables


def momentum_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """Two trainable variables with slots, and one non-trainable variable."""
    with v1.variable_scope("dense"):
        kernel = v1.get_variable("kernel", [4, 1], initializer=v1.ones_initializer())
        bias = v1.get_variable("bias", [1], initializer=v1.zeros_initializer())
    tally = v1.get_variable("tally", [], trainable=False, initializer=v1.zeros_initializer())
    prediction = tf.matmul(features, kernel) + bias
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions=prediction)
    loss = tf.reduce_mean(tf.square(prediction - labels))
    optimizer = v1.train.MomentumOptimizer(params["learning_rate"], 0.9)
    train_op = tf.group(optimizer.minimize(loss, v1.train.get_global_step()), v1.assign_add(tally, 1.0))
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


@pytest.fixture
def with_slots(in_process: Make, tmp_path: Path) -> Any:
    estimator = in_process(momentum_model_fn, params={"learning_rate": 0.01}, model_dir=tmp_path / "with_slots")
    return estimator.train(endless_input_fn, steps=5)


ALL = {"dense/kernel", "dense/bias", "dense/kernel/Momentum", "dense/bias/Momentum", "tally", "global_step"}


def variable(name: str) -> tf.Variable:
    with tf.Graph().as_default():
        return v1.get_variable(name, [4, 1])


@pytest.mark.parametrize(
    ("chosen", "started"),
    [
        (".*", {"dense/kernel", "dense/bias"}),
        (".*kernel", {"dense/kernel"}),
        ("ernel", set()),
        ([".*"], ALL),
        (["tally", "dense/bias"], {"tally", "dense/bias", "dense/bias/Momentum"}),
        (["dense/[^/]+:0"], {"dense/kernel", "dense/bias"}),
        ([variable("dense/kernel")], {"dense/kernel"}),
        ([tf.Variable(0.0, name="tally")], {"tally"}),
        ([], set()),
        (None, set()),
    ],
)
def test_a10_variables_are_chosen(with_slots: Any, warm: Make, chosen: Any, started: set[str]) -> None:
    settings = WarmStartSettings(with_slots.model_dir, vars_to_warm_start=chosen)

    first = warm(settings, momentum_model_fn)
    first.train(endless_input_fn, steps=1, saving_listeners=EACH_SAVE_ARRIVES)

    reader = tf.train.load_checkpoint(f"{first.model_dir}/model.ckpt-{5 if 'global_step' in started else 0}")
    same = {name for name in ALL if np.array_equal(reader.get_tensor(name), value(with_slots, name))}
    assert same == started


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["dense/kernel", variable("dense/bias")], "must be all `Variable` or all `str`.*'ResourceVariable', 'str'"),
        ([1, 2], "must be all `Variable` or all `str`"),
        (3, "must be a `list` or `str`"),
        ({"dense/kernel"}, "must be a `list` or `str`"),
    ],
)
def test_a10_another_choice_is_refused(chosen: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmStartSettings("path", vars_to_warm_start=chosen)


def test_a10_a_partitioned_variable_starts_from_a_whole_one_and_back(
    in_process: Make, warm: Make, tmp_path: Path
) -> None:
    def partitioned_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        kernel = v1.get_variable("dense/kernel", [4, 1], partitioner=v1.fixed_size_partitioner(2), use_resource=True)
        loss = tf.reduce_mean(tf.square(tf.matmul(features, tf.convert_to_tensor(kernel)) - labels))
        optimizer = v1.train.GradientDescentOptimizer(params["learning_rate"])
        return EstimatorSpec(mode, loss=loss, train_op=optimizer.minimize(loss, v1.train.get_global_step()))

    trained = in_process(partitioned_model_fn, params={"learning_rate": 0.1}, model_dir=tmp_path / "trained")
    trained.train(endless_input_fn, steps=3)
    settings = WarmStartSettings(trained.model_dir, [variable("dense/kernel")])
    whole = warm(settings, momentum_model_fn).train(endless_input_fn, steps=1)

    back = in_process(partitioned_model_fn, params={"learning_rate": 0.0}, model_dir=tmp_path / "back")
    back = Estimator(partitioned_model_fn, back.model_dir, back.config, back.params, warm_start_from=settings)
    back.train(endless_input_fn, steps=1)

    assert equal(whole, trained, "dense/kernel")
    assert equal(back, trained, "dense/kernel")


def test_a10_variables_of_keras_start_too(in_process: Make, tmp_path: Path) -> None:
    trained = in_process(worlds.keras_model_fn, params={}, model_dir=tmp_path / "trained")
    trained.train(worlds.endless_input_fn, steps=3)
    config = trained.config.replace(model_dir=str(tmp_path / "warm"))
    names = [name for name in trained.get_variable_names() if name.endswith(("kernel", "moving_mean"))]
    patterns = [f"{name}:0" for name in names]

    estimator = Estimator(
        worlds.keras_model_fn, None, config, {}, warm_start_from=WarmStartSettings(trained.model_dir, patterns)
    )
    estimator.train(worlds.endless_input_fn, steps=1)

    reader = tf.train.load_checkpoint(f"{estimator.model_dir}/model.ckpt-0")
    assert len(names) >= 5
    assert all(np.array_equal(reader.get_tensor(name), value(trained, name)) for name in names)


def test_a10_a_keras_variable_is_known_by_its_path(with_slots: Any) -> None:
    with tf.Graph().as_default():
        layer = keras.layers.Dense(1, name="dense")
        layer.build((None, 4))
        settings = WarmStartSettings("path", vars_to_warm_start=[layer.kernel])

    assert settings == WarmStartSettings("path", vars_to_warm_start=[r"dense/kernel(/part_\d+)?(:|$)"])


# By which names


def renamed_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    with v1.variable_scope("renamed"):
        return linear_model_fn(features, labels, mode, params)


def test_a10_renamed_variables_start_from_their_old_names(trained: Any, warm: Make) -> None:
    names = {f"renamed/dense/{name}": f"dense/{name}" for name in ("kernel", "bias")}
    settings = WarmStartSettings(trained.latest_checkpoint(), var_name_to_prev_var_name=names)

    estimator = warm(settings, renamed_model_fn).train(endless_input_fn, steps=1)

    for name, old in names.items():
        assert np.array_equal(value(estimator, name), value(trained, old))


def test_a10_a_name_that_no_variable_has_is_an_error(trained: Any, warm: Make) -> None:
    settings = WarmStartSettings(trained.model_dir, var_name_to_prev_var_name={"dense/krenel": "dense/kernel"})

    with pytest.raises(ValueError, match="dense/krenel"):
        warm(settings).train(endless_input_fn, steps=1)


def test_a10_a_variable_that_the_checkpoint_lacks_is_an_error(trained: Any, warm: Make) -> None:
    with pytest.raises(ValueError, match="renamed/dense/"):
        warm(trained.model_dir, renamed_model_fn).train(endless_input_fn, steps=1)


# By vocabularies

OLD_WORDS = ("ape", "bee", "cat", "dog")
NEW_WORDS = ("dog", "elk", "ape")


def words_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """A table of `params["rows"]` by `params["columns"]`."""
    shape = [params["rows"], params["columns"]]
    table = v1.get_variable("words/table", shape, initializer=v1.random_normal_initializer(seed=1))
    other = v1.get_variable("other", [], initializer=v1.constant_initializer(params["other"]))
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"table": tf.identity(table)})
    loss = tf.reduce_sum(table) * other
    train_op = v1.train.GradientDescentOptimizer(0.0).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def save_words(folder: str, **words: tuple[str, ...]) -> dict[str, str]:
    """Write vocabulary files, and return their paths."""
    for name, entries in words.items():
        with fsspec.open(f"{folder}/{name}.txt", "w") as file:
            file.write("\n".join(entries) + "\n")
    return {name: f"{folder}/{name}.txt" for name in words}


@pytest.fixture
def words(in_process: Make, tmp_path: Path) -> Any:
    params = {"rows": 4, "columns": 2, "other": 7.0}
    return in_process(words_model_fn, params=params, model_dir=tmp_path / "words").train(endless_input_fn, steps=1)


def table_after(words: Any, tmp_path: Path, shape: tuple[int, int], info: Any, **settings: Any) -> tuple[Any, float]:
    """Return the table and the other variable of a model warm-started with `info`."""
    start = WarmStartSettings(words.model_dir, var_name_to_vocab_info={"words/table": info}, **settings)
    config = words.config.replace(model_dir=str(tmp_path / "warm"))
    params = {"rows": shape[0], "columns": shape[1], "other": 1.0}
    estimator = Estimator(words_model_fn, None, config, params, warm_start_from=start).train(endless_input_fn, steps=1)
    return value(estimator, "words/table"), float(value(estimator, "other"))


@pytest.mark.parametrize("kind", [VocabInfo, v1.train.VocabInfo], ids=["ours", "tensorflows"])
@pytest.mark.parametrize("folder", ["local", "memory://a10-words"])
def test_a10_rows_follow_their_words(words: Any, tmp_path: Path, kind: Any, folder: str) -> None:
    (tmp_path / "local").mkdir()
    files = save_words(str(tmp_path / folder) if folder == "local" else folder, new=NEW_WORDS, old=OLD_WORDS)
    info = kind(files["new"], 3, 2, files["old"], backup_initializer=v1.random_uniform_initializer(8.0, 9.0))

    table, other = table_after(words, tmp_path, (5, 2), info)

    old = value(words, "words/table")
    np.testing.assert_array_equal(table[[0, 2]], old[[3, 0]])  # dog and ape
    new = table[[1, 3, 4]]  # elk, and two rows for other words
    assert np.all((new >= 8.0) & (new < 9.0))
    assert other == 7.0


def test_a10_new_rows_are_zeros_unless_told_otherwise(words: Any, tmp_path: Path) -> None:
    files = save_words(str(tmp_path), new=NEW_WORDS, old=OLD_WORDS)

    table, _ = table_after(words, tmp_path, (3, 2), VocabInfo(files["new"], 3, 0, files["old"]))

    np.testing.assert_array_equal(table[1], [0.0, 0.0])
    assert np.all(table[[0, 2]] != 0.0)


def test_a10_only_the_first_of_the_old_words_may_count(words: Any, tmp_path: Path) -> None:
    files = save_words(str(tmp_path), new=NEW_WORDS, old=OLD_WORDS)

    table, _ = table_after(words, tmp_path, (3, 2), VocabInfo(files["new"], 3, 0, files["old"], old_vocab_size=2))

    old = value(words, "words/table")
    np.testing.assert_array_equal(table, [[0.0, 0.0], [0.0, 0.0], old[0]])


def test_a10_columns_follow_their_words(words: Any, tmp_path: Path) -> None:
    files = save_words(str(tmp_path), new=("no", "maybe", "yes"), old=("yes", "no"))

    table, _ = table_after(words, tmp_path, (4, 3), VocabInfo(files["new"], 3, 0, files["old"], axis=1))

    old = value(words, "words/table")
    np.testing.assert_array_equal(table, np.stack([old[:, 1], np.zeros(4), old[:, 0]], axis=1))


def test_a10_none_starts_what_has_a_vocabulary_alone(words: Any, tmp_path: Path) -> None:
    files = save_words(str(tmp_path), new=NEW_WORDS, old=OLD_WORDS)
    info = VocabInfo(files["new"], 3, 0, files["old"])

    table, other = table_after(words, tmp_path, (3, 2), info, vars_to_warm_start=None)

    np.testing.assert_array_equal(table[0], value(words, "words/table")[3])
    assert other == 1.0


def test_a10_a_vocabulary_is_for_rows_or_for_columns() -> None:
    with pytest.raises(ValueError, match="only supported values for the axis argument are 0 and 1, got 2"):
        VocabInfo("new", 3, 0, "old", axis=2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda settings: pickle.loads(pickle.dumps(settings))])
def test_a10_settings_can_be_copied(copied: Callable[[Any], Any]) -> None:
    settings = WarmStartSettings("path", [".*"], {"words/table": VocabInfo("new", 3, 0, "old")}, {"new": "old"})

    assert copied(settings) == settings
    assert type(copied(settings)) is WarmStartSettings
    assert type(copied(settings).var_name_to_vocab_info["words/table"]) is VocabInfo


# In which verbs


def test_a10_verbs_without_a_checkpoint_start_warm(trained: Any, warm: Make, tmp_path: Path) -> None:
    estimator = warm(trained.latest_checkpoint())

    result, expected = estimator.evaluate(one_pass_input_fn), trained.evaluate(one_pass_input_fn)
    assert result == {**expected, "global_step": 0}
    rows = zip(estimator.predict(one_pass_input_fn), trained.predict(one_pass_input_fn), strict=True)
    assert all(row["y"] == expected["y"] for row, expected in rows)
    exported = estimator.export_savedmodel(tmp_path / "export", serving_input_receiver_fn)
    kernel = tf.train.load_variable(f"{exported}/variables/variables", "dense/kernel")
    np.testing.assert_array_equal(kernel, value(trained, "dense/kernel"))
    assert estimator.latest_checkpoint() is None


def test_a10_vocabularies_act_in_other_verbs_too(words: Any, tmp_path: Path) -> None:
    files = save_words(str(tmp_path), new=NEW_WORDS, old=OLD_WORDS)
    info = VocabInfo(files["new"], 3, 0, files["old"])
    start = WarmStartSettings(words.model_dir, var_name_to_vocab_info={"words/table": info})
    config = words.config.replace(model_dir=str(tmp_path / "warm"))
    params = {"rows": 3, "columns": 2, "other": 1.0}
    estimator = Estimator(words_model_fn, None, config, params, warm_start_from=start)

    table = next(estimator.predict(one_pass_input_fn, yield_single_examples=False))["table"]

    np.testing.assert_array_equal(table[[0, 2]], value(words, "words/table")[[3, 0]])


def test_a10_verbs_with_a_checkpoint_do_not_start_warm(
    trained: Any, warm: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    estimator = warm(None).train(endless_input_fn, steps=1)

    with caplog.at_level(logging.INFO):
        estimator = warm(trained.latest_checkpoint())
        loss = estimator.evaluate(one_pass_input_fn)["loss"]
        prediction = next(estimator.predict(one_pass_input_fn))["y"]
        exported = estimator.export_savedmodel(tmp_path / "export", serving_input_receiver_fn)

    assert not any("Warm-starting" in message for message in caplog.messages)
    cold = warm(None)
    assert loss == cold.evaluate(one_pass_input_fn)["loss"] != trained.evaluate(one_pass_input_fn)["loss"]
    assert prediction == next(cold.predict(one_pass_input_fn))["y"]
    kernel = tf.train.load_variable(f"{exported}/variables/variables", "dense/kernel")
    np.testing.assert_array_equal(kernel, np.ones((4, 1)))
