"""Inputs of an exported model: receivers, and the builders of receiver functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.exporting import PARSING, Loaded, exported, exporting, served, signatures_of
from support.models import X, endless_input_fn, linear_model_fn

from ray_estimator import (
    ServingInputReceiver,
    SupervisedInputReceiver,
    TensorServingInputReceiver,
    dataset_input_fn,
    export,
)
from ray_estimator._jobs.serialization import pack

MakeEstimator = Callable[..., Any]

EAGER = tf.zeros([5, 2], tf.int32)


@pytest.fixture
def trained(in_process: MakeEstimator) -> Any:
    return in_process(linear_model_fn, params={}).train(endless_input_fn, steps=3)


def shape_of(info: Any) -> list[int]:
    """The shape in a TensorInfo."""
    return [dimension.size for dimension in info.tensor_shape.dim]


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


NO_TENSOR = r"must be a Tensor, SparseTensor or RaggedTensor"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, {}), r"features must be defined\."),
        (({}, None), r"receiver_tensors must be defined\."),
        (({"x": "no tensor"}, {}), f"feature 'x' {NO_TENSOR}, got 'no tensor'"),
        (({("x",): tf.constant(1)}, {}), r"feature keys must be strings or ints, got \('x',\)"),
        (({}, {7: tf.constant(1)}), "receiver_tensor keys must be strings, got 7"),
        (({}, {"x": "no tensor"}), f"receiver_tensor 'x' {NO_TENSOR}"),
        (({}, {}, [1]), r"receiver_tensors_alternatives must be a dict, got \[1\]"),
        (({}, {}, {"raw": None}), "receiver_tensors_alternatives must be defined"),
        (({}, {}, {"raw": {1: tf.constant(1)}}), "receiver_tensors_alternative keys must be strings, got 1"),
    ],
)
def test_a7_4_serving_receivers_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServingInputReceiver(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, {}), r"features must be defined\."),
        (({"x": tf.constant(1)}, {}), r"feature must be one Tensor, got .*use ServingInputReceiver"),
        ((tf.constant(1), None), r"receiver_tensors must be defined\."),
    ],
)
def test_a7_4_tensor_receivers_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorServingInputReceiver(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, tf.constant(1), {}), r"features must be defined\."),
        ((tf.constant(1), None, {}), r"labels must be defined\."),
        ((tf.constant(1), tf.constant(1), None), r"receiver_tensors must be defined\."),
        (({"x": 1}, tf.constant(1), {}), f"feature 'x' {NO_TENSOR}"),
        ((tf.constant(1), {"y": 1}, {}), f"label 'y' {NO_TENSOR}"),
        ((tf.constant(1), {None: tf.constant(1)}, {}), "label keys must be strings or ints, got None"),
    ],
)
def test_a7_4_supervised_receivers_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupervisedInputReceiver(*arguments)


def test_a7_4_a_supervised_receiver_passes_features_and_labels_as_they_are() -> None:
    x, y = tf.constant([1.0]), tf.constant([2.0])

    plain = SupervisedInputReceiver(x, y, x)
    named = SupervisedInputReceiver({0: x}, {"y": y}, {"x": x, "y": y})

    assert plain.features is x
    assert plain.labels is y
    assert dict(plain.receiver_tensors) == {"input": x}
    assert named.features == {0: x}
    assert named.labels == {"y": y}
    assert set(named.receiver_tensors) == {"x", "y"}


def test_a7_4_features_may_have_ints_as_keys(in_process: MakeEstimator, tmp_path: Path) -> None:
    def receiver_fn() -> ServingInputReceiver:
        x = v1.placeholder(tf.float32, [None, 4])
        return ServingInputReceiver({0: x, 1: x + 1}, {"x": x})

    model_fn = exporting(lambda features: {"predictions": features[0] + features[1]})
    folder = exported(in_process, model_fn, receiver_fn, tmp_path)

    np.testing.assert_allclose(served(folder, x=X[:3])["output"], X[:3] * 2 + 1, rtol=1e-6)


def test_a7_4_what_is_no_receiver_is_an_error_that_says_what_is(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"for mode 'infer' must return a ServingInputReceiver.*got {}"):
        trained.export_savedmodel(tmp_path, dict)


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


def test_a7_5_a_parsing_receiver_has_the_batch_size_that_is_asked_for(trained: Any, tmp_path: Path) -> None:
    spec = {"x": tf.io.FixedLenFeature([4], tf.float32)}
    folder = trained.export_savedmodel(tmp_path, export.build_parsing_serving_input_receiver_fn(spec, 2))

    assert shape_of(signatures_of(folder)["serving_default"].inputs["examples"]) == [2]


def test_a7_5_a_raw_receiver_is_like_its_templates_and_keeps_their_names() -> None:
    with tf.Graph().as_default():
        templates = {
            "x": v1.placeholder(tf.float32, [None, 4], name="pixels"),
            "scalar": tf.constant(1, name="a/constant"),
            "unknown": v1.placeholder(tf.string, name="unknown"),
            "spec": tf.TensorSpec([3, 5], tf.int64, name="named"),
            "eager": EAGER,
            "array": np.zeros([2, 3], np.float64),
        }
        receiver_fn = export.build_raw_serving_input_receiver_fn(templates)
        with_batch_size = export.build_raw_serving_input_receiver_fn(templates, 7)

    with tf.Graph().as_default():
        receiver = receiver_fn()
        tensors = receiver.receiver_tensors
        assert receiver.features == tensors
        assert {name: tensor.dtype.name for name, tensor in tensors.items()} == {
            "x": "float32",
            "scalar": "int32",
            "unknown": "string",
            "spec": "int64",
            "eager": "int32",
            "array": "float64",
        }
        assert [tensors[name].op.name for name in ("x", "scalar", "unknown", "spec")] == [
            "pixels",
            "a/constant",
            "unknown",
            "named",
        ]
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        assert shapes["unknown"].rank is None
        assert {name: shape.as_list() for name, shape in shapes.items() if name != "unknown"} == {
            "x": [None, 4],
            "scalar": [None],
            "spec": [None, 5],
            "eager": [None, 2],
            "array": [None, 3],
        }
    with tf.Graph().as_default():
        assert with_batch_size().features["x"].shape.as_list() == [7, 4]


def test_a7_5_sparse_and_ragged_templates_give_sparse_and_ragged_features(
    in_process: MakeEstimator, tmp_path: Path
) -> None:
    def build(features: Any) -> dict[str, Any]:
        ragged = tf.reduce_sum(features["ragged"], axis=1)
        return {"predictions": {"sums": tf.sparse.reduce_sum(features["sparse"], 1) + ragged}}

    templates = {
        "sparse": tf.sparse.from_dense([[1.0, 0.0, 2.0]]),
        "ragged": tf.ragged.constant([[1.0], []]),
    }
    folder = exported(in_process, exporting(build), export.build_raw_serving_input_receiver_fn(templates), tmp_path)

    with Loaded(folder, tf.saved_model.SERVING) as model:
        signature = model.meta_graph.signature_def["serving_default"]
        sparse, ragged = signature.inputs["sparse"].coo_sparse, signature.inputs["ragged"].composite_tensor
        values, splits = (component.name for component in ragged.components)
        fed = {
            sparse.indices_tensor_name: [[0, 0], [0, 2], [1, 1]],
            sparse.values_tensor_name: [1.0, 2.0, 4.0],
            sparse.dense_shape_tensor_name: [2, 3],
            values: [10.0, 20.0, 40.0],
            splits: [0, 1, 3],
        }
        assert model.session.run(signature.outputs["sums"].name, fed).tolist() == [13.0, 64.0]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (tf.TensorSpec([None, 4]), "features must be a dict of Tensors by name.*TensorServingInputReceiver"),
        ({"x": "text"}, r"features\['x'\] must be a Tensor, an array or a tf\.TypeSpec, got 'text'"),
    ],
)
def test_a7_5_raw_templates_are_checked(features: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        export.build_raw_serving_input_receiver_fn(features)


def of_placeholders() -> Any:
    with tf.Graph().as_default():
        x, y = v1.placeholder(tf.float32, [None, 4], "x"), v1.placeholder(tf.float32, [None, 1], "y")
        return export.build_raw_supervised_input_receiver_fn({"x": x}, y)


def of_tensors() -> Any:
    return export.build_supervised_input_receiver_fn_from_input_fn(
        lambda: v1.data.make_one_shot_iterator(endless_input_fn()).get_next()
    )


def of_serving_tensors() -> Any:
    with tf.Graph().as_default():
        return export.build_raw_serving_input_receiver_fn({"x": v1.placeholder(tf.float32, [None, 4])})


@pytest.mark.parametrize("make", [of_placeholders, of_tensors, of_serving_tensors])
def test_a7_5_receiver_functions_travel_though_their_templates_are_tensors_of_a_graph(make: Any) -> None:
    receiver_fn = pack({"receiver_fn": make()}).open()["receiver_fn"]

    with tf.Graph().as_default():
        features = receiver_fn().features
        (x,) = features.values() if isinstance(features, dict) else [features]
        assert x.shape.as_list() == [None, 4]


# 5. Supervised builders


def test_a7_5_a_raw_supervised_receiver_names_single_tensors_input_and_label() -> None:
    receiver_fn = export.build_raw_supervised_input_receiver_fn(EAGER, tf.TensorSpec([None], tf.float32), 3)

    with tf.Graph().as_default():
        receiver = receiver_fn()

    assert receiver.features.shape.as_list() == [3, 2]
    assert receiver.labels.shape.as_list() == [3]
    assert set(receiver.receiver_tensors) == {"input", "label"}
    assert receiver.receiver_tensors["input"] is receiver.features
    assert receiver.receiver_tensors["label"] is receiver.labels


def test_a7_5_a_raw_supervised_receiver_keeps_dicts() -> None:
    receiver_fn = export.build_raw_supervised_input_receiver_fn({"a": EAGER, "b": EAGER}, {"c": EAGER})

    with tf.Graph().as_default():
        receiver = receiver_fn()

    assert set(receiver.features) == {"a", "b"}
    assert set(receiver.labels) == {"c"}
    assert dict(receiver.receiver_tensors) == {**receiver.features, **receiver.labels}


@pytest.mark.parametrize(
    ("features", "labels", "keys"),
    [
        ({"x": EAGER, "y": EAGER}, {"y": EAGER, "z": EAGER}, r"\['y'\]"),
        ({"label": EAGER}, EAGER, r"\['label'\]"),
        (EAGER, {"input": EAGER}, r"\['input'\]"),
    ],
)
def test_a7_5_features_and_labels_must_not_share_keys(features: Any, labels: Any, keys: str) -> None:
    with pytest.raises(ValueError, match=f"must have distinct keys. Found overlapping keys: {keys}"):
        export.build_raw_supervised_input_receiver_fn(features, labels)


def test_a7_5_a_supervised_receiver_needs_features_and_labels() -> None:
    with pytest.raises(ValueError, match="labels must be defined"):
        export.build_raw_supervised_input_receiver_fn(EAGER, None)
    with pytest.raises(ValueError, match="features must be defined"):
        export.build_raw_supervised_input_receiver_fn(None, EAGER)


def batches(params: Any) -> Any:
    rows = ({"x": X, "text": np.full(len(X), b"a")}, {"y": X[:, 0]})
    return tf.data.Dataset.from_tensor_slices(rows).batch(params["batch_size"])


def test_a7_5_a_receiver_is_like_what_an_input_fn_gives() -> None:
    receiver_fn = export.build_supervised_input_receiver_fn_from_input_fn(batches, params={"batch_size": 8})

    with tf.Graph().as_default() as graph:
        receiver = receiver_fn()
        assert {op.type for op in graph.get_operations()} == {"Placeholder"}

    found = {name: (tensor.dtype.name, tensor.shape.as_list()) for name, tensor in receiver.receiver_tensors.items()}
    assert found == {"x": ("float32", [None, 4]), "text": ("string", [None]), "y": ("float32", [None])}
    assert set(receiver.features) == {"x", "text"}
    assert set(receiver.labels) == {"y"}


def test_a7_5_a_receiver_of_an_input_fn_that_gives_tensors() -> None:
    def input_fn() -> Any:
        return v1.data.make_one_shot_iterator(endless_input_fn()).get_next()

    receiver_fn = export.build_supervised_input_receiver_fn_from_input_fn(input_fn)

    with tf.Graph().as_default():
        receiver = receiver_fn()
    assert receiver.features.shape.as_list() == [None, 4]
    assert receiver.labels.shape.as_list() == [None, 1]


@pytest.mark.parametrize(
    "input_fn",
    [lambda: {"x": EAGER}, lambda: (EAGER,), lambda: tf.data.Dataset.from_tensor_slices({"x": X})],
    ids=["features", "one", "dataset"],
)
def test_a7_5_an_input_fn_without_labels_makes_no_supervised_receiver(input_fn: Any) -> None:
    with pytest.raises(ValueError, match=r"should return \(features, labels\) as a len 2 tuple"):
        export.build_supervised_input_receiver_fn_from_input_fn(input_fn)


def test_a7_5_a_dataset_input_is_no_function_to_call() -> None:
    with pytest.raises(TypeError, match=r"input_fn must be callable.*build_raw_supervised_input_receiver_fn"):
        export.build_supervised_input_receiver_fn_from_input_fn(dataset_input_fn(lambda: None, batch_size=2))


# Names


def test_export_has_the_names_that_it_says() -> None:
    names = {
        "ClassificationOutput",
        "EvalOutput",
        "ExportOutput",
        "PredictOutput",
        "RegressionOutput",
        "ServingInputReceiver",
        "SupervisedInputReceiver",
        "TensorServingInputReceiver",
        "build_parsing_serving_input_receiver_fn",
        "build_raw_serving_input_receiver_fn",
        "build_raw_supervised_input_receiver_fn",
        "build_supervised_input_receiver_fn_from_input_fn",
    }

    assert set(export.__all__) == names
    assert names <= set(dir(export))
    assert all(callable(getattr(export, name)) for name in names)
    with pytest.raises(AttributeError, match="no attribute 'TrainOutput'"):
        _ = export.TrainOutput
