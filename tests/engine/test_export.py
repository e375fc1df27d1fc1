"""export_saved_model: files, names, and that serving gives the results of predict."""

from __future__ import annotations

import logging
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from ray.train import ScalingConfig
from support import worlds
from support.exporting import (
    PARSING,
    PREDICT_METHOD,
    RAW,
    Loaded,
    exported,
    exporting,
    served,
    signatures_of,
    train_on_anything,
)
from support.models import X, endless_input_fn, linear_model_fn

from ray_estimator import (
    CheckpointDamagedError,
    CheckpointNotFoundError,
    Estimator,
    EstimatorSpec,
    ModeKeys,
    WarmStartSettings,
    export,
)
from ray_estimator._runtime.ray_runtime import RayRuntime
from ray_estimator._storage.storage import Storage

MakeEstimator = Callable[..., Any]


@pytest.fixture
def trained(in_process: MakeEstimator) -> Any:
    return in_process(linear_model_fn, params={}).train(endless_input_fn, steps=3)


# 1. The call


def test_a7_1_a_receiver_function_is_needed(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"An input_receiver_fn must be defined\."):
        trained.export_savedmodel(tmp_path, None)
    with pytest.raises(ValueError, match=r"An input_receiver_fn must be defined\."):
        trained.export_saved_model(tmp_path, None)
    with pytest.raises(TypeError, match="input_receiver_fn for mode 'infer' must be callable"):
        trained.export_savedmodel(tmp_path, "no function")


def test_a7_1_an_untrained_model_is_not_exported(in_process: MakeEstimator, tmp_path: Path) -> None:
    estimator = in_process(linear_model_fn, params={})

    for export_model in (estimator.export_savedmodel, estimator.export_saved_model):
        with pytest.raises(ValueError, match=f"Couldn't find trained model at {estimator.model_dir}"):
            export_model(tmp_path / "export", RAW)

    assert not (tmp_path / "export").exists()


def test_a7_1_an_explicit_checkpoint_goes_before_the_newest(trained: Any, tmp_path: Path) -> None:
    first, kernel = trained.latest_checkpoint(), trained.get_variable_value("dense/kernel")
    bias = trained.get_variable_value("dense/bias")
    trained.train(endless_input_fn, steps=20)

    folder = trained.export_savedmodel(tmp_path, RAW, checkpoint_path=first)

    np.testing.assert_allclose(served(folder, x=X[:5])["y"], X[:5] @ kernel + bias, rtol=1e-5)


def test_a7_1_a_path_may_be_of_any_kind(trained: Any, tmp_path: Path) -> None:
    checkpoint = trained.latest_checkpoint()

    folder = trained.export_savedmodel(str(tmp_path / "bytes").encode(), RAW, checkpoint_path=Path(checkpoint))

    assert Path(folder).parent == tmp_path / "bytes"


def test_a7_1_a_damaged_checkpoint_is_not_exported(trained: Any, tmp_path: Path) -> None:
    checkpoint = trained.latest_checkpoint()
    (data,) = Path(trained.model_dir).glob(f"{Path(checkpoint).name}.data-*")
    data.unlink()

    with pytest.raises(CheckpointNotFoundError, match="is damaged"):
        trained.export_savedmodel(tmp_path / "export", RAW, checkpoint_path=checkpoint)
    with pytest.raises(CheckpointNotFoundError, match="there are no files"):
        trained.export_savedmodel(tmp_path / "export", RAW, checkpoint_path=checkpoint + "0")

    assert not (tmp_path / "export").exists()


def test_a7_1_a_checkpoint_whose_bytes_were_changed_is_not_exported(trained: Any, tmp_path: Path) -> None:
    checkpoint = trained.latest_checkpoint()
    (data,) = Path(trained.model_dir).glob(f"{Path(checkpoint).name}.data-*")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)

    with pytest.raises(CheckpointDamagedError, match="has a wrong checksum"):
        trained.export_savedmodel(tmp_path / "export", RAW, checkpoint_path=checkpoint)

    assert not (tmp_path / "export").exists()


def warm_started_from(trained: Any, model_dir: Path, settings: Any) -> Estimator:
    return Estimator(linear_model_fn, model_dir, trained.config.replace(model_dir=None), {}, warm_start_from=settings)


def test_a7_1_an_untrained_model_that_is_warm_started_is_exported(trained: Any, tmp_path: Path) -> None:
    estimator = warm_started_from(trained, tmp_path / "new", trained.latest_checkpoint())

    y = served(estimator.export_saved_model(tmp_path / "export", RAW), x=X[:4])["y"]

    kernel, bias = (trained.get_variable_value(f"dense/{name}") for name in ("kernel", "bias"))
    np.testing.assert_allclose(y, X[:4] @ kernel + bias, rtol=1e-5)


def test_a7_1_what_is_not_warm_started_has_its_initial_value(trained: Any, tmp_path: Path) -> None:
    settings = WarmStartSettings(trained.latest_checkpoint(), vars_to_warm_start="dense/bias")
    estimator = warm_started_from(trained, tmp_path / "new", settings)

    y = served(estimator.export_saved_model(tmp_path / "export", RAW), x=X[:4])["y"]

    expected = X[:4].sum(axis=1, keepdims=True) + trained.get_variable_value("dense/bias")
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_a7_1_an_untrained_model_is_initialised_as_its_scaffold_says(trained: Any, tmp_path: Path) -> None:
    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        spec = linear_model_fn(features, labels, mode, params)
        own = v1.get_variable("own", [], initializer=v1.zeros_initializer())
        set_own = own.assign(5.0)

        def init_fn(scaffold: Any, session: Any) -> None:
            session.run(set_own)

        return spec._replace(
            predictions={"own": own + 0.0 * spec.predictions["y"]},
            export_outputs=None,
            scaffold=v1.train.Scaffold(init_fn=init_fn),
        )

    estimator = Estimator(
        model_fn,
        tmp_path / "new",
        trained.config.replace(model_dir=None),
        {},
        warm_start_from=WarmStartSettings(trained.latest_checkpoint(), vars_to_warm_start="dense/.*"),
    )

    assert served(estimator.export_saved_model(tmp_path / "export", RAW), x=X[:1])["own"].tolist() == [[5.0]]


# 2. The directory


def test_a7_2_the_directory_is_a_str_named_by_the_time(trained: Any, tmp_path: Path) -> None:
    before = int(time.time())

    folder = trained.export_savedmodel(tmp_path / "deep" / "export", RAW)

    assert isinstance(folder, str)
    assert Path(folder).parent == tmp_path / "deep" / "export"
    assert before <= int(Path(folder).name) <= time.time()
    assert {path.name for path in Path(folder).iterdir()} >= {"saved_model.pb", "variables"}


def test_a7_2_each_export_gets_a_directory_of_its_own_and_leaves_nothing_else(trained: Any, tmp_path: Path) -> None:
    folders = [trained.export_savedmodel(str(tmp_path / "export"), RAW) for _ in range(2)]

    assert len(set(folders)) == 2
    assert sorted(str(path) for path in (tmp_path / "export").iterdir()) == sorted(folders)


def test_a7_2_an_export_that_fails_leaves_nothing(trained: Any, tmp_path: Path) -> None:
    def failing_receiver_fn() -> Any:
        raise LookupError("no such feature")

    with pytest.raises(LookupError, match="no such feature"):
        trained.export_savedmodel(tmp_path / "export", failing_receiver_fn)

    assert list((tmp_path / "export").iterdir()) == []


def test_a7_2_a_relative_base_is_below_the_current_directory(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert Path(trained.export_savedmodel("here", RAW)).parent == tmp_path / "here"


def test_a7_2_a_base_that_cannot_be_written_to_is_the_systems_error(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OSError, match="file"):
        trained.export_savedmodel(tmp_path / "file" / "export", RAW)


def test_a7_2_an_export_that_fails_leaves_nothing_on_a_store(trained: Any, tmp_path: Path) -> None:
    def failing_receiver_fn() -> Any:
        raise LookupError("no such feature")

    with pytest.raises(LookupError, match="no such feature"):
        trained.export_savedmodel("memory://a7-failed/base", failing_receiver_fn)

    assert Storage().list_dir("memory://a7-failed/base") == []


def test_a7_2_a_remote_export_loads_after_a_copy(trained: Any, tmp_path: Path) -> None:
    url = trained.export_savedmodel("memory://a7-export/base", RAW)

    assert url.startswith("memory://a7-export/base/")
    assert Storage().list_dir("memory://a7-export/base") == [url.rpartition("/")[2]]
    Storage().get_dir(url, str(tmp_path / "copy"))
    assert served(str(tmp_path / "copy"), x=X[:2])["y"].shape == (2, 1)


# 3. Signatures


def test_a7_3_predictions_are_exported_as_the_default_signature(trained: Any, tmp_path: Path) -> None:
    signatures = signatures_of(trained.export_savedmodel(tmp_path, RAW))

    assert set(signatures) == {"serving_default"}
    assert signatures["serving_default"].method_name == PREDICT_METHOD
    assert set(signatures["serving_default"].inputs) == {"x"}
    assert set(signatures["serving_default"].outputs) == {"x", "y"}


def outputs_of_every_kind(features: Any) -> dict[str, Any]:
    score = tf.reduce_sum(features["x"], axis=1)
    scores = tf.stack([score, -score], axis=1)
    return {
        "predictions": {"score": score},
        "export_outputs": {
            "serving_default": export.PredictOutput({"score": score}),
            "classes": export.ClassificationOutput(scores=scores),
            "regression": export.RegressionOutput(score),
        },
    }


def test_a7_3_each_export_output_is_a_signature_of_its_method(in_process: MakeEstimator, tmp_path: Path) -> None:
    signatures = signatures_of(exported(in_process, exporting(outputs_of_every_kind), PARSING, tmp_path))

    assert {name: signature.method_name for name, signature in signatures.items()} == {
        "serving_default": PREDICT_METHOD,
        "classes": "tensorflow/serving/classify",
        "regression": "tensorflow/serving/regress",
    }


def test_a7_3_what_cannot_be_served_is_left_out_with_the_reason(
    in_process: MakeEstimator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    signatures = signatures_of(exported(in_process, exporting(outputs_of_every_kind), RAW, tmp_path))

    assert set(signatures) == {"serving_default"}
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert "Signatures EXCLUDED from export because they cannot be be served via TensorFlow Serving APIs" in logged
    assert "'classes' : Classification signatures can only accept a single tensor input" in logged


def test_a7_3_outputs_that_no_serving_api_has_are_left_out_with_the_reason(
    in_process: MakeEstimator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def build(features: Any) -> dict[str, Any]:
        score = tf.reduce_mean(features["x"])
        outputs = {"serving_default": export.PredictOutput(score), "loss": export.EvalOutput(score, {"p": score})}
        return {"predictions": features["x"], "export_outputs": outputs}

    assert set(signatures_of(exported(in_process, exporting(build), RAW, tmp_path))) == {"serving_default"}
    assert "EXCLUDED from export because they cannot be served: 'loss'" in caplog.text
    assert "tensorflow/supervised/eval" in caplog.text


def test_a7_3_a_signature_that_needs_another_placeholder_is_left_out(
    in_process: MakeEstimator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def build(features: Any) -> dict[str, Any]:
        unfed = features["x"] + v1.placeholder(tf.float32, [], name="unfed")
        outputs = {"serving_default": export.PredictOutput(features["x"]), "bad": export.PredictOutput(unfed)}
        return {"predictions": features["x"], "export_outputs": outputs}

    caplog.set_level(logging.INFO)

    assert set(signatures_of(exported(in_process, exporting(build), RAW, tmp_path))) == {"serving_default"}
    assert "unfed" in "\n".join(record.getMessage() for record in caplog.records)


def test_a7_3_one_output_under_another_name_is_the_default_too(in_process: MakeEstimator, tmp_path: Path) -> None:
    def build(features: Any) -> dict[str, Any]:
        return {"predictions": features["x"], "export_outputs": {"doubled": export.PredictOutput(features["x"] * 2)}}

    folder = exported(in_process, exporting(build), RAW, tmp_path)

    for name in ("doubled", "serving_default"):
        np.testing.assert_array_equal(served(folder, name, x=X[:3])["output"], X[:3] * 2)


# 6. Assets and text


def vocabulary_model_fn(path: Path) -> Callable[..., EstimatorSpec]:
    def build(features: Any) -> dict[str, Any]:
        table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                str(path), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            ),
            default_value=-1,
        )
        return {"predictions": {"ids": table.lookup(features["words"])}}

    return exporting(build)


WORDS = export.build_raw_serving_input_receiver_fn({"words": tf.TensorSpec([None], tf.string)})


def test_a7_6_a_vocabulary_is_copied_and_its_table_initialised_at_load(
    in_process: MakeEstimator, tmp_path: Path
) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("one\ntwo\nthree\n")

    folder = exported(in_process, vocabulary_model_fn(vocabulary), WORDS, tmp_path)
    vocabulary.unlink()
    moved = Path(folder).rename(tmp_path / "elsewhere")

    assert (moved / "assets" / "words.txt").read_text() == "one\ntwo\nthree\n"
    assert served(str(moved), words=["three", "one", "four"])["ids"].tolist() == [2, 0, -1]


def test_a7_6_serving_finds_the_table_initialised(in_process: MakeEstimator, tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("one\ntwo\n")
    folder = exported(in_process, vocabulary_model_fn(vocabulary), WORDS, tmp_path)

    with tf.Graph().as_default(), v1.Session() as session:
        graph_def = v1.saved_model.loader.load(session, [tf.saved_model.SERVING], folder)
        signature = graph_def.signature_def["serving_default"]
        fed = {signature.inputs["words"].name: ["two", "one"]}
        assert session.run(signature.outputs["ids"].name, fed).tolist() == [1, 0]


def test_a7_6_extra_assets_are_copied_to_where_they_are_asked_for(trained: Any, tmp_path: Path) -> None:
    source = tmp_path / "notes.txt"
    source.write_text("local")
    Storage().write_bytes("memory://a7-assets/far.txt", b"far")
    assets = {"notes.txt": str(source), "deep/below/far.txt": "memory://a7-assets/far.txt"}

    folder = Path(trained.export_savedmodel(tmp_path / "export", RAW, assets_extra=assets))

    assert (folder / "assets.extra" / "notes.txt").read_text() == "local"
    assert (folder / "assets.extra" / "deep" / "below" / "far.txt").read_text() == "far"


@pytest.mark.parametrize(
    ("assets", "error", "message"),
    [
        ({"a": "missing.txt"}, FileNotFoundError, r"assets_extra\['a'\] must be a file"),
        ({"../a": __file__}, ValueError, "must be a relative path of a file below"),
    ],
)
def test_a7_6_wrong_assets_are_errors_on_the_driver(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assets: Any, error: Any, message: str
) -> None:
    def nothing_runs(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("An export began.")

    monkeypatch.setattr(RayRuntime, "run", nothing_runs)
    monkeypatch.setattr(RayRuntime, "__init__", nothing_runs)
    config = trained.config.replace(scaling_config=ScalingConfig(num_workers=1))
    estimator = Estimator(linear_model_fn, config=config, params={})

    with pytest.raises(error, match=message):
        estimator.export_savedmodel(tmp_path / "export", RAW, assets_extra=assets)
    with pytest.raises(AssertionError, match="An export began"):
        estimator.export_savedmodel(tmp_path / "export", RAW, assets_extra={"a": __file__})


def test_a7_6_a_relative_source_is_below_the_drivers_directory(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("relative")
    monkeypatch.chdir(tmp_path)

    def elsewhere() -> Any:
        monkeypatch.chdir("/")
        return RAW()

    folder = Path(trained.export_savedmodel("export", elsewhere, assets_extra={"n": "notes.txt"}))

    assert folder.parent == tmp_path / "export"
    assert (folder / "assets.extra" / "n").read_text() == "relative"


def test_a7_6_as_text_writes_the_proto_as_text(trained: Any, tmp_path: Path) -> None:
    folder = trained.export_savedmodel(tmp_path, RAW, as_text=True)

    assert 'key: "serving_default"' in (Path(folder) / "saved_model.pbtxt").read_text()
    assert not (Path(folder) / "saved_model.pb").exists()
    assert served(folder, x=X[:2])["y"].shape == (2, 1)


@pytest.mark.parametrize("strip", [False, True])
def test_a7_6_default_attributes_are_stripped_if_asked(trained: Any, tmp_path: Path, strip: bool) -> None:
    folder = trained.export_savedmodel(tmp_path, RAW, as_text=True, strip_default_attrs=strip)

    assert ("stripped_default_attrs: true" in (Path(folder) / "saved_model.pbtxt").read_text()) is strip


def test_a7_6_export_saved_model_strips_default_attributes(trained: Any, tmp_path: Path) -> None:
    folder = trained.export_saved_model(tmp_path, RAW, None, True)

    assert "stripped_default_attrs: true" in (Path(folder) / "saved_model.pbtxt").read_text()


# 7. The Scaffold


def test_a7_7_the_scaffolds_saver_chooses_what_is_restored_and_saved(in_process: MakeEstimator, tmp_path: Path) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        saved = v1.get_variable("saved", [], initializer=v1.constant_initializer(3.0))
        if mode == ModeKeys.TRAIN:
            return train_on_anything(mode)
        unsaved = v1.get_variable("unsaved", [], initializer=v1.zeros_initializer())
        scaffold = v1.train.Scaffold(saver=v1.train.Saver([saved]), local_init_op=unsaved.initializer)
        return EstimatorSpec(mode, predictions=features["x"] * saved + unsaved, scaffold=scaffold)

    folder = exported(in_process, model_fn, RAW, tmp_path)

    names = [name for name, _ in tf.train.list_variables(f"{folder}/variables/variables")]
    assert names == ["saved"]
    with tf.Graph().as_default(), v1.Session() as session:
        v1.saved_model.loader.load(session, [tf.saved_model.SERVING], folder)
        assert session.run("saved/Read/ReadVariableOp:0") == 3.0
        assert session.run("unsaved/Read/ReadVariableOp:0") == 0.0


def test_a7_7_a_saver_of_moving_averages_exports_the_averages(in_process: MakeEstimator, tmp_path: Path) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
        averages = tf.train.ExponentialMovingAverage(0.5)
        if mode == ModeKeys.TRAIN:
            with tf.control_dependencies([weight.assign_add(8.0)]):
                average = averages.apply([weight])
            with tf.control_dependencies([average]):
                train_op = v1.assign_add(v1.train.get_global_step(), 1)
            return EstimatorSpec(mode, loss=tf.constant(1.0), train_op=train_op)
        saver = v1.train.Saver({averages.average_name(weight): weight})
        predictions = weight + 0.0 * features["x"]
        return EstimatorSpec(mode, predictions=predictions, scaffold=v1.train.Scaffold(saver=saver))

    folder = exported(in_process, model_fn, RAW, tmp_path)

    assert served(folder, x=X[:1])["output"].tolist() == [[4.0] * 4]


def test_a7_7_a_checkpoint_object_of_the_scaffold_is_its_saver(in_process: MakeEstimator, tmp_path: Path) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        weight = v1.get_variable("weight", [], initializer=v1.constant_initializer(3.0))
        v1.get_variable("unsaved", [], initializer=v1.zeros_initializer())
        scaffold = v1.train.Scaffold(saver=tf.train.Checkpoint(weight=weight, step=v1.train.get_global_step()))
        train_op = v1.assign_add(v1.train.get_global_step(), 1)
        predictions = weight * features if mode == ModeKeys.TRAIN else weight * features["x"]
        return EstimatorSpec(mode, predictions, tf.constant(1.0), train_op, scaffold=scaffold)

    folder = exported(in_process, model_fn, RAW, tmp_path)

    np.testing.assert_array_equal(served(folder, x=X[:2])["output"], X[:2] * 3)


def test_a7_7_a_local_init_op_of_the_scaffold_runs_when_the_model_is_loaded(
    in_process: MakeEstimator, tmp_path: Path
) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        weight = v1.get_variable("weight", [], initializer=v1.constant_initializer(3.0))
        if mode == ModeKeys.TRAIN:
            return train_on_anything(mode)
        scaffold = v1.train.Scaffold(local_init_op=weight.assign_add(1.0).op)
        return EstimatorSpec(mode, predictions=weight + 0.0 * features["x"], scaffold=scaffold)

    folder = exported(in_process, model_fn, RAW, tmp_path)

    assert tf.train.load_variable(f"{folder}/variables/variables", "weight") == 3.0
    with Loaded(folder, tf.saved_model.SERVING) as model:
        assert model.run("serving_default", x=X[:1])["output"].tolist() == [[4.0] * 4]


# 8. A checkpoint that does not fit


MISSING_NEW = (
    r"(?s)Could not load all requested variables from checkpoint. Please make sure your model_fn does not expect "
    r"variables that were not saved.*with mode `infer`.*model.ckpt-1`: Key new not found in checkpoint"
)


def test_a7_8_variables_that_the_checkpoint_lacks_are_an_error(in_process: MakeEstimator, tmp_path: Path) -> None:
    def build(features: Any) -> dict[str, Any]:
        return {"predictions": features["x"] * v1.get_variable("new", [], initializer=v1.ones_initializer())}

    with pytest.raises(ValueError, match=MISSING_NEW):
        exported(in_process, exporting(build), RAW, tmp_path)

    assert list((tmp_path / "export").iterdir()) == []


def test_a7_8_a_variable_of_another_shape_is_an_error(in_process: MakeEstimator, tmp_path: Path) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        units = 1 if mode == ModeKeys.TRAIN else 2
        weights = v1.get_variable("weights", [units], initializer=v1.ones_initializer())
        if mode == ModeKeys.TRAIN:
            return train_on_anything(mode)
        return EstimatorSpec(mode, predictions=features["x"] * tf.reduce_mean(weights))

    with pytest.raises(tf.errors.InvalidArgumentError, match="a mismatch between"):
        exported(in_process, model_fn, RAW, tmp_path)

    assert list((tmp_path / "export").iterdir()) == []


# 10. What it serves


def test_a7_10_a_loaded_signature_gives_what_predict_gives(trained: Any, tmp_path: Path) -> None:
    def input_fn() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices({"x": X}).batch(50)

    predicted = np.stack([row["y"] for row in trained.predict(input_fn)])

    np.testing.assert_allclose(served(trained.export_savedmodel(tmp_path, RAW), x=X)["y"], predicted, rtol=1e-6)


def test_a7_10_exporting_from_a_remote_model_dir(in_process: MakeEstimator, tmp_path: Path) -> None:
    estimator = in_process(linear_model_fn, params={}, model_dir="memory://a7-remote/model")
    estimator.train(endless_input_fn, steps=2)

    y = served(estimator.export_savedmodel(tmp_path, RAW), x=X[:3])["y"]

    kernel, bias = (estimator.get_variable_value(f"dense/{name}") for name in ("kernel", "bias"))
    np.testing.assert_allclose(y, X[:3] @ kernel + bias, rtol=1e-5)


def test_a7_10_saved_model_cli_runs_an_export(trained: Any, tmp_path: Path) -> None:
    folder = trained.export_saved_model(tmp_path / "export", RAW)
    np.save(tmp_path / "x.npy", X[:6])

    command = [Path(sysconfig.get_path("scripts")) / "saved_model_cli", "run"]
    command += ["--dir", folder, "--tag_set", "serve", "--signature_def", "serving_default"]
    command += ["--inputs", f"x={tmp_path / 'x.npy'}", "--outdir", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stderr
    kernel, bias = (trained.get_variable_value(f"dense/{name}") for name in ("kernel", "bias"))
    np.testing.assert_allclose(np.load(tmp_path / "out" / "y.npy"), X[:6] @ kernel + bias, rtol=1e-5)


def test_a7_10_a_keras_model_serves_what_predict_gives(in_process: MakeEstimator, tmp_path: Path) -> None:
    """Dropout is off, and batch normalization uses its moving averages."""
    estimator = in_process(worlds.keras_model_fn, params={}).train(worlds.endless_input_fn, steps=20)

    def input_fn() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices({"x": worlds.X, "ids": worlds.IDS}).batch(64)

    templates = {"x": tf.TensorSpec([None, 4], tf.float32), "ids": tf.TensorSpec([None, 5], tf.int32)}
    folder = estimator.export_saved_model(tmp_path / "export", export.build_raw_serving_input_receiver_fn(templates))

    predicted = np.stack([row["probability"] for row in estimator.predict(input_fn)])
    together = served(folder, x=worlds.X, ids=worlds.IDS)["probability"]
    alone = np.concatenate(
        [served(folder, x=worlds.X[i : i + 1], ids=worlds.IDS[i : i + 1])["probability"] for i in (0, 9)]
    )
    np.testing.assert_allclose(together, predicted, rtol=1e-5)
    np.testing.assert_allclose(alone, predicted[[0, 9]], rtol=1e-5)
    assert np.ptp(predicted) > 0.2
