"""export_savedmodel: what is written, where, and that it serves what predict gives."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from fsspec.implementations.memory import MemoryFileSystem
from models import X, endless_input_fn, linear_model_fn

from ray_estimator import EstimatorSpec, ModeKeys, ServingInputReceiver, TensorServingInputReceiver, export
from ray_estimator._storage import Storage

MakeEstimator = Callable[..., Any]

RAW = export.build_raw_serving_input_receiver_fn({"x": tf.TensorSpec([None, 4], tf.float32)})
PARSING = export.build_parsing_serving_input_receiver_fn({"x": tf.io.FixedLenFeature([4], tf.float32)})
PREDICT_METHOD = "tensorflow/serving/predict"


@pytest.fixture
def trained(in_process: MakeEstimator) -> Any:
    return in_process(linear_model_fn, params={}).train(endless_input_fn, steps=3)


def train_on_anything(mode: str) -> EstimatorSpec:
    """A TRAIN spec for models that are about their export."""
    return EstimatorSpec(mode, loss=tf.constant(1.0), train_op=v1.assign_add(v1.train.get_global_step(), 1))


def exporting(build: Callable[[Any], Mapping[str, Any]]) -> Callable[..., EstimatorSpec]:
    """A model_fn whose PREDICT spec has the fields that `build` makes of the features."""

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return train_on_anything(mode) if mode == ModeKeys.TRAIN else EstimatorSpec(mode, **build(features))

    return model_fn


def exported(in_process: MakeEstimator, model_fn: Any, receiver_fn: Any, tmp_path: Path, **arguments: Any) -> str:
    estimator = in_process(model_fn).train(endless_input_fn, steps=1)
    return str(estimator.export_savedmodel(tmp_path / "export", receiver_fn, **arguments))


def signatures_of(folder: str) -> dict[str, Any]:
    """The SignatureDefs, by name, of the only MetaGraph."""
    with tf.Graph().as_default(), v1.Session() as session:
        return dict(v1.saved_model.loader.load(session, [tf.saved_model.SERVING], folder).signature_def)


def served(folder: str, signature: str = "serving_default", **inputs: Any) -> dict[str, Any]:
    """What a signature of a freshly loaded SavedModel gives."""
    loaded = tf.saved_model.load(folder)
    outputs = loaded.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}


# 1. The call


def test_a7_1_a_receiver_function_is_needed(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"An input_receiver_fn must be defined\."):
        trained.export_savedmodel(tmp_path, None)
    with pytest.raises(TypeError, match="serving_input_receiver_fn must be callable"):
        trained.export_savedmodel(tmp_path, "no function")


def test_a7_1_an_untrained_model_is_not_exported(in_process: MakeEstimator, tmp_path: Path) -> None:
    estimator = in_process(linear_model_fn, params={})

    with pytest.raises(ValueError, match=f"Couldn't find trained model at {estimator.model_dir}"):
        estimator.export_savedmodel(tmp_path / "export", RAW)

    assert not (tmp_path / "export").exists()


def test_a7_1_an_explicit_checkpoint_goes_before_the_newest(trained: Any, tmp_path: Path) -> None:
    first, kernel = trained.latest_checkpoint(), trained.get_variable_value("dense/kernel")
    bias = trained.get_variable_value("dense/bias")
    trained.train(endless_input_fn, steps=20)

    folder = trained.export_savedmodel(tmp_path, RAW, checkpoint_path=first)

    np.testing.assert_allclose(served(folder, x=X[:5])["y"], X[:5] @ kernel + bias, rtol=1e-5)


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


class RecordingFileSystem(MemoryFileSystem):
    """A store that notes the order in which files arrive."""

    protocol = "recording"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    arrived: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("recording://", "memory://")))

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        super().put_file(lpath, rpath, *args, **kwargs)
        self.arrived.append(rpath)


def test_a7_2_a_remote_export_is_whole_when_its_graph_arrives(trained: Any, tmp_path: Path) -> None:
    fsspec.register_implementation("recording", RecordingFileSystem, clobber=True)
    RecordingFileSystem.arrived.clear()

    url = trained.export_savedmodel("recording://export", RAW, assets_extra={"a.txt": __file__})

    names = [path.rpartition(url.rpartition("/")[2] + "/")[2] for path in RecordingFileSystem.arrived]
    assert names[-1] == "saved_model.pb"
    assert {"assets.extra/a.txt", "variables/variables.index"} <= set(names[:-1])


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


# 4. Receivers


def test_a7_4_alternative_receivers_give_further_signatures(in_process: MakeEstimator, tmp_path: Path) -> None:
    def receiver_fn() -> ServingInputReceiver:
        serialized = v1.placeholder(tf.string, [None], "serialized")
        x = tf.reshape(tf.io.decode_raw(serialized, tf.float32), [-1, 4])
        return ServingInputReceiver({"x": x}, serialized, {"raw": {"x": x}})

    model_fn = exporting(lambda features: {"predictions": features["x"] * 2})
    folder = exported(in_process, model_fn, receiver_fn, tmp_path)

    assert set(signatures_of(folder)) == {"serving_default", "raw:serving_default"}
    np.testing.assert_array_equal(served(folder, "raw:serving_default", x=X[:3])["output"], X[:3] * 2)
    np.testing.assert_array_equal(served(folder, input=[row.tobytes() for row in X[:3]])["output"], X[:3] * 2)


@pytest.mark.parametrize("kind", [ServingInputReceiver, TensorServingInputReceiver])
def test_a7_4_a_single_tensor_is_wrapped_or_passed_as_it_is(
    in_process: MakeEstimator, tmp_path: Path, kind: Any
) -> None:
    seen: list[Any] = []

    def build(features: Any) -> dict[str, Any]:
        seen.append(features)
        return {"predictions": features["feature"] if isinstance(features, dict) else features}

    def receiver_fn() -> Any:
        x = v1.placeholder(tf.float32, [None, 4])
        return kind(x, x)

    folder = exported(in_process, exporting(build), receiver_fn, tmp_path)

    assert isinstance(seen[0], dict) is (kind is ServingInputReceiver)
    np.testing.assert_array_equal(served(folder, input=X[:3])["output"], X[:3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, {}), r"features must be defined\."),
        (({}, None), r"receiver_tensors must be defined\."),
        (({}, {7: tf.constant(1)}), "receiver_tensor keys must be strings: 7"),
        (({}, {"x": "no tensor"}), "receiver_tensor 'x' must be a Tensor"),
        (({}, {}, [1]), "receiver_tensors_alternatives must be a dict"),
    ],
)
def test_a7_4_receivers_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServingInputReceiver(*arguments)


# 5. Builders


def test_a7_5_a_parsing_receiver_takes_serialized_examples(trained: Any, tmp_path: Path) -> None:
    folder = trained.export_savedmodel(tmp_path, PARSING)

    examples = [
        tf.train.Example(
            features=tf.train.Features(feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=row))})
        ).SerializeToString()
        for row in X[:4]
    ]
    assert signatures_of(folder)["serving_default"].inputs["examples"].name == "input_example_tensor:0"
    np.testing.assert_array_equal(served(folder, examples=examples)["x"], X[:4])


def test_a7_5_a_raw_receiver_keeps_the_names_of_tensors(trained: Any, tmp_path: Path) -> None:
    def features() -> dict[str, Any]:
        with tf.Graph().as_default():
            return {"x": v1.placeholder(tf.float32, [None, 4], name="pixels")}

    folder = trained.export_savedmodel(tmp_path, export.build_raw_serving_input_receiver_fn(features(), 2))

    tensor = signatures_of(folder)["serving_default"].inputs["x"]
    assert tensor.name == "pixels:0"
    assert [dimension.size for dimension in tensor.tensor_shape.dim] == [2, 4]


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


def test_a7_6_as_text_writes_the_proto_as_text(trained: Any, tmp_path: Path) -> None:
    folder = trained.export_savedmodel(tmp_path, RAW, as_text=True)

    assert 'key: "serving_default"' in (Path(folder) / "saved_model.pbtxt").read_text()
    assert not (Path(folder) / "saved_model.pb").exists()
    assert served(folder, x=X[:2])["y"].shape == (2, 1)


@pytest.mark.parametrize("strip", [False, True])
def test_a7_6_default_attributes_are_stripped_if_asked(trained: Any, tmp_path: Path, strip: bool) -> None:
    folder = trained.export_savedmodel(tmp_path, RAW, as_text=True, strip_default_attrs=strip)

    assert ("stripped_default_attrs: true" in (Path(folder) / "saved_model.pbtxt").read_text()) is strip


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


# 8. A checkpoint that does not fit


def test_a7_8_variables_that_the_checkpoint_lacks_are_an_error(in_process: MakeEstimator, tmp_path: Path) -> None:
    def build(features: Any) -> dict[str, Any]:
        return {"predictions": features["x"] * v1.get_variable("new", [], initializer=v1.ones_initializer())}

    with pytest.raises(ValueError, match=r"Could not load all requested variables from checkpoint.*'infer'"):
        exported(in_process, exporting(build), RAW, tmp_path)

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
