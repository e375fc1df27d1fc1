"""What TensorFlow graphs can do, in a model_fn: training makes of each part what is said by hand, and every other verb
says what the trained variables say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import old_style_script
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
import tf_keras
from support.graph_oracles import ORACLES
from support.graph_parts import IDS, LISTS, PARTS, PHRASE, STEPS, WORD, WORDS, X, input_fn, model_fn
from support.two_processes import results_of

from ray_estimator import EstimatorSpec, ServingInputReceiver

Make = Callable[..., Any]

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
HALF_TOLERANCE = {"rtol": 1e-2, "atol": 1e-2}


@pytest.fixture
def make(in_process: Make, tmp_path: Path) -> Make:
    """Makes an Estimator of some parts: ``make("lookup", "gan", gan_steps=1)``."""
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")

    def make_parts(*names: str, **params: Any) -> Any:
        return in_process(model_fn, params={"parts": names, "vocabulary": str(vocabulary), "gan_steps": 1, **params})

    return make_parts


def assert_close(actual: Any, expected: Any, name: str) -> None:
    if np.asarray(actual).dtype.kind in "SO":
        np.testing.assert_array_equal(actual, expected, err_msg=name)
    else:
        tolerance = HALF_TOLERANCE if np.asarray(actual).dtype == np.float16 else TOLERANCE
        np.testing.assert_allclose(actual, expected, err_msg=name, **tolerance)


def columns_of(rows: Any) -> dict[str, np.ndarray]:
    listed = list(rows)
    return {name: np.stack([row[name] for row in listed]) for name in listed[0]}


def receiver_fn() -> ServingInputReceiver:
    """Takes what a client can send, dense; lists of ids are padded with -1."""
    inputs = {
        "x": v1.placeholder(tf.float32, [None, 3], name="x"),
        "word": v1.placeholder(tf.string, [None], name="word"),
        "ids": v1.placeholder(tf.int64, [None, 2], name="ids"),
        "lists": v1.placeholder(tf.int64, [None, None], name="lists"),
        "phrase": v1.placeholder(tf.string, [None], name="phrase"),
    }
    features = {name: tensor for name, tensor in inputs.items() if name != "lists"}
    features["sparse"] = tf.sparse.from_dense(inputs["x"])
    features["ragged"] = tf.RaggedTensor.from_tensor(inputs["lists"], padding=-1)
    return ServingInputReceiver(features, inputs)


def served(exported: str) -> dict[str, np.ndarray]:
    """What the exported model says of all rows."""
    lists = np.full([len(LISTS), 3], -1, np.int64)
    for row, ids in zip(lists, LISTS, strict=True):
        row[: len(ids)] = ids
    inputs = {"x": X, "word": WORD.astype("S"), "ids": IDS, "lists": lists, "phrase": PHRASE.astype("S")}
    signature = tf.saved_model.load(exported).signatures["serving_default"]
    wanted = signature.structured_input_signature[1]
    outputs = signature(**{name: tf.constant(value) for name, value in inputs.items() if name in wanted})
    return {name: output.numpy() for name, output in outputs.items()}


@pytest.mark.parametrize("name", sorted(PARTS))
def test_each_part_trains_evaluates_predicts_and_exports(make: Make, tmp_path: Path, name: str) -> None:
    variables, predictions = ORACLES[name]()
    estimator = make(name).train(input_fn)

    assert {each.removeprefix(f"{name}/") for each in estimator.get_variable_names()} == {"global_step", *variables}
    assert estimator.get_variable_value("global_step") == STEPS
    for variable, expected in variables.items():
        assert_close(estimator.get_variable_value(f"{name}/{variable}"), expected, variable)

    predicted = columns_of(estimator.predict(input_fn))
    for key, expected in predictions.items():
        assert_close(predicted[f"{name}/{key}"], expected, key)

    result = estimator.evaluate(input_fn)
    assert result["global_step"] == STEPS
    assert result[f"{name}/loss"] == pytest.approx(result["loss"])
    if "score" in predictions and name != "regularized":
        assert_close(result["loss"], np.mean(predictions["score"]), "loss")

    if name != "python_function":  # whose functions live in this process
        by_server = served(estimator.export_savedmodel(tmp_path / "export", receiver_fn))
        assert by_server.keys() == predicted.keys()
        for key, value in predicted.items():
            assert_close(by_server[key], value, key)


def test_all_parts_side_by_side_train_as_each_does_alone(make: Make) -> None:
    names = sorted(set(PARTS) - {"regularized", "gan"})  # their losses and steps go by collections of the whole graph
    estimator = make(*names).train(input_fn)

    assert estimator.get_variable_value("global_step") == STEPS
    for name in names:
        for variable, expected in ORACLES[name]()[0].items():
            assert_close(estimator.get_variable_value(f"{name}/{variable}"), expected, f"{name}/{variable}")


def test_all_parts_after_disable_v2_behavior(tmp_path: Path) -> None:
    results_of([(old_style_script.main, tmp_path / "models")])


@pytest.mark.parametrize("layer", ["input_layer", "linear_model", "DenseFeatures"])
def test_feature_columns_train_through_each_layer_that_takes_them(in_process: Make, layer: str) -> None:
    """`DenseFeatures` is tf_keras's alone. The part `columns` above has every kind of column."""

    def columns_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        kind = tf.feature_column.categorical_column_with_identity("kind", 3)
        columns = [tf.feature_column.numeric_column("size"), tf.feature_column.indicator_column(kind)]
        if layer == "linear_model":
            score = v1.feature_column.linear_model(features, columns)[:, 0]
        else:
            take = (
                v1.feature_column.input_layer
                if layer == "input_layer"
                else lambda x, y: tf_keras.layers.DenseFeatures(y)(x)
            )
            weights = v1.get_variable("weights", [4], initializer=v1.zeros_initializer())
            score = tf.linalg.matvec(take(features, columns), weights)
        loss = tf.reduce_mean(score)
        train_op = v1.train.GradientDescentOptimizer(1.0).minimize(loss, v1.train.get_global_step())
        return EstimatorSpec(mode, predictions=score, loss=loss, train_op=train_op)

    def two_rows() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors(({"size": [[2.0], [4.0]], "kind": [[0], [2]]}, [0.0, 0.0]))

    rows = np.array([[2.0, 1.0, 0.0, 0.0], [4.0, 0.0, 0.0, 1.0]])
    bias = 1.0 if layer == "linear_model" else 0.0

    predicted = list(in_process(columns_model_fn).train(two_rows).predict(two_rows))

    np.testing.assert_allclose(predicted, -rows @ rows.mean(axis=0) - bias, rtol=1e-6)


@pytest.mark.parametrize(("gan_steps", "counted"), [(1, STEPS), (2, 2 * STEPS)])
def test_of_two_optimizers_one_or_both_count_the_step(make: Make, gan_steps: int, counted: int) -> None:
    estimator = make("gan", gan_steps=gan_steps).train(input_fn)

    assert estimator.get_variable_value("global_step") == counted
    for variable, expected in ORACLES["gan"]()[0].items():
        assert_close(estimator.get_variable_value(f"gan/{variable}"), expected, variable)


def test_two_optimizers_that_both_count_reach_max_steps_together(make: Make) -> None:
    estimator = make("gan", gan_steps=2).train(lambda mode: input_fn(mode).repeat(), max_steps=4)

    assert estimator.get_variable_value("global_step") == 4
