"""Exports with the modes TRAIN and EVAL: one MetaGraph per mode, one set of variables, signatures, train_op."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support import worlds
from support.exporting import RAW, SUPERVISED, Loaded, served, signatures_of, train_on_anything
from support.models import NUM_FEATURES, X, Y, endless_input_fn, one_pass_input_fn
from tensorflow.core.protobuf import saved_model_pb2

from ray_estimator import Estimator, EstimatorSpec, ModeKeys, export

MakeEstimator = Callable[..., Any]

TAGS = {ModeKeys.TRAIN: "train", ModeKeys.EVAL: "eval", ModeKeys.PREDICT: "serve"}
ALL_MODES = {ModeKeys.PREDICT: RAW, ModeKeys.EVAL: SUPERVISED, ModeKeys.TRAIN: SUPERVISED}
WORLDS_TEMPLATES = {"x": tf.TensorSpec([None, 4], tf.float32), "ids": tf.TensorSpec([None, 5], tf.int32)}


def full_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    """A linear regression whose specs set every field; only PREDICT has no loss."""
    x = features["x"] if isinstance(features, dict) else features
    with v1.variable_scope("dense"):
        kernel = v1.get_variable("kernel", [NUM_FEATURES, 1], initializer=v1.ones_initializer())
        bias = v1.get_variable("bias", [1], initializer=v1.zeros_initializer())
    predictions = {"y": tf.matmul(x, kernel) + bias}
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions)
    loss = tf.reduce_mean(tf.square(predictions["y"] - labels))
    metrics = {"mae": v1.metrics.mean_absolute_error(labels, predictions["y"])}
    optimizer = v1.train.MomentumOptimizer(0.05, 0.9)
    train_op = optimizer.minimize(loss, v1.train.get_global_step()) if mode == ModeKeys.TRAIN else None
    return EstimatorSpec(mode, predictions, loss, train_op, metrics)


@pytest.fixture
def trained(in_process: MakeEstimator) -> Any:
    return in_process(full_model_fn).train(endless_input_fn, steps=3)


def meta_graphs(folder: str) -> Any:
    """The MetaGraphDefs in the order of the file."""
    return saved_model_pb2.SavedModel.FromString((Path(folder) / "saved_model.pb").read_bytes()).meta_graphs


# All modes


def test_a7_9_every_mode_is_a_meta_graph_of_its_tag(trained: Any, tmp_path: Path) -> None:
    folder = trained.experimental_export_all_saved_models(tmp_path, ALL_MODES)

    assert [list(graph.meta_info_def.tags) for graph in meta_graphs(folder)] == [["train"], ["eval"], ["serve"]]
    assert all(graph.meta_info_def.stripped_default_attrs for graph in meta_graphs(folder))


@pytest.mark.parametrize("modes", [[ModeKeys.EVAL], [ModeKeys.PREDICT, ModeKeys.TRAIN], [ModeKeys.PREDICT]])
def test_a7_9_only_the_modes_that_are_asked_for_are_exported(trained: Any, tmp_path: Path, modes: list[str]) -> None:
    folder = trained.experimental_export_all_saved_models(tmp_path, {mode: ALL_MODES[mode] for mode in modes})

    tags = {tag for graph in meta_graphs(folder) for tag in graph.meta_info_def.tags}
    assert tags == {TAGS[mode] for mode in modes}


def test_a7_9_variables_are_saved_once_with_all_that_training_saved(trained: Any, tmp_path: Path) -> None:
    folder = trained.experimental_export_all_saved_models(tmp_path, ALL_MODES)

    saved = {name for name, _ in tf.train.list_variables(f"{folder}/variables/variables")}
    assert saved == set(trained.get_variable_names())
    assert len(list((Path(folder) / "variables").glob("*.index"))) == 1


@pytest.mark.parametrize("given", [{}, {ModeKeys.EVAL: None}, {"test": SUPERVISED}])
def test_a7_9_without_a_valid_mode_nothing_is_exported(trained: Any, tmp_path: Path, given: Any) -> None:
    with pytest.raises(ValueError, match=r"No valid modes for exporting found\. Got "):
        trained.experimental_export_all_saved_models(tmp_path / "export", given)
    with pytest.raises(ValueError, match=r"No valid modes for exporting found\. Got \['test'\]"):
        trained.export_saved_model(tmp_path / "export", SUPERVISED, experimental_mode="test")

    assert not (tmp_path / "export").exists()


def test_a7_9_an_untrained_model_is_not_exported(in_process: MakeEstimator, tmp_path: Path) -> None:
    estimator = in_process(full_model_fn)

    with pytest.raises(ValueError, match=f"Couldn't find trained model at {estimator.model_dir}"):
        estimator.experimental_export_all_saved_models(tmp_path / "export", ALL_MODES)


def test_a7_9_a_warm_started_model_is_exported_in_all_modes(trained: Any, tmp_path: Path) -> None:
    config = trained.config.replace(model_dir=None)
    start = trained.latest_checkpoint()
    estimator = Estimator(full_model_fn, tmp_path / "new", config, warm_start_from=start)

    folder = estimator.experimental_export_all_saved_models(tmp_path / "export", ALL_MODES)

    for mode, tag in TAGS.items():
        with Loaded(folder, tag) as model:
            kernel = model.session.run(model.graph.get_tensor_by_name("dense/kernel/Read/ReadVariableOp:0"))
        np.testing.assert_array_equal(kernel, trained.get_variable_value("dense/kernel"), mode)


def test_a7_9_assets_text_and_checkpoint_are_given_as_to_any_export(trained: Any, tmp_path: Path) -> None:
    first, kernel = trained.latest_checkpoint(), trained.get_variable_value("dense/kernel")
    trained.train(endless_input_fn, steps=5)
    (tmp_path / "notes.txt").write_text("of the model")

    folder = Path(
        trained.experimental_export_all_saved_models(
            tmp_path / "export", ALL_MODES, {"notes.txt": tmp_path / "notes.txt"}, True, first
        )
    )

    assert (folder / "assets.extra" / "notes.txt").read_text() == "of the model"
    assert (folder / "saved_model.pbtxt").exists()
    np.testing.assert_array_equal(tf.train.load_variable(str(folder / "variables/variables"), "dense/kernel"), kernel)


# Signatures


def test_a7_9_predict_serves_beside_other_modes(trained: Any, tmp_path: Path) -> None:
    folder = trained.experimental_export_all_saved_models(tmp_path, ALL_MODES)

    kernel, bias = (trained.get_variable_value(f"dense/{name}") for name in ("kernel", "bias"))
    np.testing.assert_allclose(served(folder, x=X[:5])["y"], X[:5] @ kernel + bias, rtol=1e-5)


@pytest.mark.parametrize(
    ("mode", "tag", "method"),
    [
        (ModeKeys.TRAIN, "train", "tensorflow/supervised/training"),
        (ModeKeys.EVAL, "eval", "tensorflow/supervised/eval"),
    ],
)
def test_a7_9_a_supervised_signature_has_loss_metrics_and_predictions(
    trained: Any, tmp_path: Path, mode: str, tag: str, method: str
) -> None:
    signatures = signatures_of(trained.export_saved_model(tmp_path, SUPERVISED, experimental_mode=mode), tag)

    assert set(signatures) == {tag}
    assert signatures[tag].method_name == method
    assert set(signatures[tag].inputs) == {"x", "label"}
    expected = {"loss", "predictions/y", "metrics/mae/value", "metrics/mae/update_op"}
    assert set(signatures[tag].outputs) == expected


def test_a7_9_an_evaluation_in_the_export_gives_what_evaluate_gives(trained: Any, tmp_path: Path) -> None:
    result = trained.evaluate(one_pass_input_fn)

    folder = trained.export_saved_model(tmp_path, SUPERVISED, experimental_mode=ModeKeys.EVAL)

    with Loaded(folder, "eval") as model:
        losses = []
        for start in range(0, len(X), 32):
            batch = {"x": X[start : start + 32], "label": Y[start : start + 32]}
            losses.append(model.run("eval", ["loss", "metrics/mae/update_op"], **batch)["loss"])
        mae = model.run("eval", ["metrics/mae/value"])["metrics/mae/value"]
    assert np.mean(losses) == pytest.approx(result["loss"], rel=1e-5)
    assert mae == pytest.approx(result["mae"], rel=1e-5)


def test_a7_9_an_exported_model_loads_eagerly_by_its_tag(trained: Any, tmp_path: Path) -> None:
    folder = trained.experimental_export_all_saved_models(tmp_path, ALL_MODES)

    signature = tf.saved_model.load(folder, tags=["eval"]).signatures["eval"]

    kernel, bias = (trained.get_variable_value(f"dense/{name}") for name in ("kernel", "bias"))
    loss = signature(x=tf.constant(X), label=tf.constant(Y))["loss"].numpy()
    assert loss == pytest.approx(np.square(X @ kernel + bias - Y).mean(), rel=1e-4)


def test_a7_9_training_goes_on_in_the_export_as_train_does(trained: Any, tmp_path: Path) -> None:
    folder = trained.export_saved_model(tmp_path, SUPERVISED, experimental_mode=ModeKeys.TRAIN)

    with Loaded(folder, "train") as model:
        (train_op,) = model.graph.get_collection("saved_model_train_op")
        for start in range(3 * 32, 6 * 32, 32):
            batch = {"x": X[start : start + 32], "label": Y[start : start + 32]}
            model.session.run(train_op, model.fed("train", **batch))
        kernel, step = model.session.run(["dense/kernel/Read/ReadVariableOp:0", v1.train.get_global_step(model.graph)])

    def the_same_batches() -> tf.data.Dataset:
        return endless_input_fn().skip(3)

    trained.train(the_same_batches, steps=3)
    assert step == trained.get_variable_value("global_step") == 6
    np.testing.assert_allclose(kernel, trained.get_variable_value("dense/kernel"), rtol=1e-6)


# Keras


def keras_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """A Keras 3 model, with a Keras metric in its TRAIN spec too."""
    import keras

    spec = worlds.keras_model_fn(features, labels, mode, params)
    if mode != ModeKeys.TRAIN:
        return spec
    mean = keras.metrics.Mean(name="mean_label")
    mean.update_state(labels)
    return spec._replace(eval_metric_ops={"mean_label": mean})


@pytest.fixture
def keras_trained(in_process: MakeEstimator) -> Any:
    return in_process(keras_model_fn, params={}).train(worlds.endless_input_fn, steps=4)


WORLDS_SUPERVISED = export.build_raw_supervised_input_receiver_fn(
    WORLDS_TEMPLATES, tf.TensorSpec([None, 1], tf.float32)
)


def test_a7_9_a_keras_model_evaluates_in_the_export(keras_trained: Any, tmp_path: Path) -> None:
    result = keras_trained.evaluate(worlds.one_pass_input_fn)

    folder = keras_trained.export_saved_model(tmp_path, WORLDS_SUPERVISED, experimental_mode=ModeKeys.EVAL)

    with Loaded(folder, "eval") as model:
        for start in range(0, worlds.NUM_ROWS, 32):
            rows = slice(start, start + 32)
            batch = {"x": worlds.X[rows], "ids": worlds.IDS[rows], "label": worlds.Y[rows]}
            model.run("eval", [f"metrics/{name}/update_op" for name in ("accuracy", "auc", "bias")], **batch)
        values = {name: model.run("eval", [f"metrics/{name}/value"]) for name in ("accuracy", "auc", "bias")}
    for name, value in values.items():
        assert value[f"metrics/{name}/value"] == pytest.approx(result[name], rel=1e-4), name


def test_a7_9_a_keras_model_trains_in_the_export(keras_trained: Any, tmp_path: Path) -> None:
    receivers = {ModeKeys.TRAIN: WORLDS_SUPERVISED, ModeKeys.EVAL: WORLDS_SUPERVISED}
    folder = keras_trained.experimental_export_all_saved_models(tmp_path, receivers)
    batch = {"x": worlds.X[:32], "ids": worlds.IDS[:32], "label": worlds.Y[:32]}

    with Loaded(folder, "train") as model:
        (train_op,) = model.graph.get_collection("saved_model_train_op")
        averages = next(v for v in v1.global_variables() if v.op.name.endswith("moving_mean"))
        step = v1.train.get_global_step()
        before = model.session.run([averages, step])
        losses = []
        for _ in range(30):
            loss = model.meta_graph.signature_def["train"].outputs["loss"].name
            losses.append(model.session.run([loss, train_op], model.fed("train", **batch))[0])
        after = model.session.run([averages, step])
        mean_label = model.run("train", ["metrics/mean_label/value"])["metrics/mean_label/value"]

    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    assert (before[1], after[1]) == (4, 34)
    assert np.abs(after[0] - before[0]).max() > 0
    assert mean_label == pytest.approx(worlds.Y[:32].mean(), rel=1e-5)


# Tables and Scaffolds


def vocabulary_model_fn(path: Path) -> Callable[..., EstimatorSpec]:
    """A vocabulary lookup without variables to train; its Scaffold has a local_init_op."""

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        if isinstance(features, tf.Tensor):
            return train_on_anything(mode)
        table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                str(path), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            ),
            default_value=-1,
        )
        ids = table.lookup(features["words"])
        calls = v1.get_variable("calls", [], trainable=False, collections=[v1.GraphKeys.LOCAL_VARIABLES])
        scaffold = v1.train.Scaffold(local_init_op=tf.group(calls.assign(7.0)))
        if mode == ModeKeys.PREDICT:
            return EstimatorSpec(mode, predictions={"ids": ids})
        metrics = {"mean_id": v1.metrics.mean(ids), "calls": v1.metrics.mean(calls)}
        loss = tf.reduce_mean(tf.cast(ids, tf.float32))
        train_op = v1.assign_add(v1.train.get_global_step(), 1)
        return EstimatorSpec(mode, {"ids": ids}, loss, train_op, metrics, scaffold=scaffold)

    return model_fn


def test_a7_9_tables_and_metrics_are_initialised_in_every_mode(in_process: MakeEstimator, tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("one\ntwo\nthree\n")
    words, labels = {"words": tf.TensorSpec([None], tf.string)}, {"y": tf.TensorSpec([None], tf.float32)}
    supervised = export.build_raw_supervised_input_receiver_fn(words, labels)
    estimator = in_process(vocabulary_model_fn(vocabulary)).train(endless_input_fn, steps=1)

    folder = estimator.experimental_export_all_saved_models(
        tmp_path / "export",
        {
            ModeKeys.TRAIN: supervised,
            ModeKeys.EVAL: supervised,
            ModeKeys.PREDICT: export.build_raw_serving_input_receiver_fn(words),
        },
    )
    vocabulary.unlink()

    assert (Path(folder) / "assets" / "words.txt").exists()
    assert served(folder, words=["three", "four"])["ids"].tolist() == [2, -1]
    for tag in ("train", "eval"):
        with Loaded(folder, tag) as model:
            updates = [f"metrics/{name}/update_op" for name in ("mean_id", "calls")]
            got = model.run(tag, ["loss", *updates], words=["three", "two"], y=[0.0, 0.0])
            assert got["loss"] == 1.5
            assert model.run(tag, ["metrics/mean_id/value"])["metrics/mean_id/value"] == 1.5


def test_a7_7_in_eval_the_scaffolds_local_init_op_runs_beside_that_of_the_metrics(
    in_process: MakeEstimator, tmp_path: Path
) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        if mode == ModeKeys.TRAIN:
            return train_on_anything(mode)
        kept = v1.get_variable("kept", [], initializer=v1.zeros_initializer())
        metrics = {"mean": v1.metrics.mean(features["x"])}
        saver = v1.train.Saver([v1.train.get_global_step()])
        scaffold = v1.train.Scaffold(saver=saver, local_init_op=kept.assign(7.0).op)
        return EstimatorSpec(mode, {"kept": kept + 0.0}, tf.constant(0.0), None, metrics, scaffold=scaffold)

    estimator = in_process(model_fn).train(endless_input_fn, steps=1)
    folder = estimator.export_saved_model(tmp_path, SUPERVISED, experimental_mode=ModeKeys.EVAL)

    with Loaded(folder, "eval") as model:
        model.run("eval", ["metrics/mean/update_op"], x=X[:4])
        got = model.run("eval", ["metrics/mean/value", "predictions/kept"])
    assert got["predictions/kept"] == 7.0
    assert got["metrics/mean/value"] == pytest.approx(X[:4].mean(), rel=1e-5)


# What does not fit


def only_in(mode_of_variable: str) -> Callable[..., EstimatorSpec]:
    """A model with a variable in one mode only."""

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        if mode == mode_of_variable:
            v1.get_variable("new", [NUM_FEATURES], initializer=v1.ones_initializer())
        loss = tf.constant(1.0)
        train_op = v1.assign_add(v1.train.get_global_step(), 1)
        predictions = features["x"] if isinstance(features, dict) else features
        return EstimatorSpec(mode, predictions, loss, train_op)

    return model_fn


@pytest.mark.parametrize("mode", [ModeKeys.EVAL, ModeKeys.PREDICT])
def test_a7_8_the_error_names_the_mode_whose_variables_are_missing(
    in_process: MakeEstimator, tmp_path: Path, mode: str
) -> None:
    estimator = in_process(only_in(mode)).train(endless_input_fn, steps=1)

    text = f"(?s)Could not load all requested variables from checkpoint.*with mode `{mode}`.*Key new not found"
    with pytest.raises(ValueError, match=text):
        estimator.experimental_export_all_saved_models(tmp_path, ALL_MODES)
    with pytest.raises(ValueError, match=text):
        estimator.export_saved_model(tmp_path, ALL_MODES[mode], experimental_mode=mode)

    assert [path for path in tmp_path.iterdir() if path.name != "model"] == []


def test_a7_8_a_mode_may_not_need_variables_that_the_first_mode_does_not_save(
    in_process: MakeEstimator, tmp_path: Path
) -> None:
    """The checkpoint has them, but the SavedModel does not."""

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        spec = only_in("")(features, labels, mode)
        if mode != ModeKeys.EVAL:
            v1.get_variable("new", [], initializer=v1.ones_initializer())
        return spec

    estimator = in_process(model_fn).train(endless_input_fn, steps=1)

    estimator.export_saved_model(tmp_path / "alone", RAW)
    with pytest.raises(ValueError, match="not saved by mode `eval`, whose variables the SavedModel has"):
        estimator.experimental_export_all_saved_models(
            tmp_path / "both", {ModeKeys.EVAL: SUPERVISED, ModeKeys.PREDICT: RAW}
        )


def test_a7_9_labels_need_a_model_that_takes_them(in_process: MakeEstimator, tmp_path: Path) -> None:
    def model_fn(features: Any, mode: str) -> EstimatorSpec:
        return train_on_anything(mode)

    def features_alone() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors(X[:1]).repeat()

    estimator = in_process(model_fn).train(features_alone, steps=1)

    with pytest.raises(ValueError, match="model_fn does not take labels"):
        estimator.export_saved_model(tmp_path, SUPERVISED, experimental_mode=ModeKeys.TRAIN)


def test_a7_9_a_mode_without_labels_takes_a_serving_receiver(in_process: MakeEstimator, tmp_path: Path) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        assert labels is None or isinstance(features, tf.Tensor)
        return train_on_anything(mode)

    estimator = in_process(model_fn).train(endless_input_fn, steps=1)

    folder = estimator.export_saved_model(tmp_path, RAW, experimental_mode=ModeKeys.TRAIN)
    assert set(signatures_of(folder, "train")["train"].inputs) == {"x"}
