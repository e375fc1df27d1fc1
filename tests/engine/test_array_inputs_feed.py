"""The batches of `numpy_input_fn` and `pandas_input_fn`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from ray import cloudpickle
from support import models
from support.models import linear_model_fn

from ray_estimator.inputs import numpy_input_fn, pandas_input_fn

v1 = tf.compat.v1
X = np.arange(10, dtype=np.int32).reshape(5, 2)
Y = np.arange(5, dtype=np.float32)


def batches(input_fn: Callable[[], Any], limit: int = 100, seed: int | None = None) -> list[Any]:
    """The batches that a session reads from the input."""
    with tf.Graph().as_default():
        v1.set_random_seed(seed)
        iterator = v1.data.make_initializable_iterator(input_fn())
        element, read = iterator.get_next(), []
        with v1.Session() as session:
            session.run(iterator.initializer)
            for _ in range(limit):
                try:
                    read.append(session.run(element))
                except tf.errors.OutOfRangeError:
                    break
    return read


def test_arrays_come_in_batches_of_their_dtypes() -> None:
    read = batches(numpy_input_fn(X, Y, batch_size=2, shuffle=False))
    assert [features.tolist() for features, _ in read] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9]]]
    assert [labels.tolist() for _, labels in read] == [[0, 1], [2, 3], [4]]
    features, labels = read[0]
    assert (features.dtype, labels.dtype) == (np.int32, np.float32)


def test_dicts_stay_dicts_and_labels_may_be_missing() -> None:
    (features, labels), *_ = batches(numpy_input_fn({"a": X, "b": Y}, {"c": Y, "d": X}, shuffle=False))
    assert set(features) == {"a", "b"}
    assert set(labels) == {"c", "d"}
    assert np.array_equal(labels["d"], X)
    (alone,) = batches(numpy_input_fn({"a": X}, shuffle=False))
    assert np.array_equal(alone["a"], X)


def test_static_shapes_and_dtypes_are_known() -> None:
    with tf.Graph().as_default():
        spec = numpy_input_fn({"a": X, "t": np.array(["u", "v", "w", "x", "y"])}, shuffle=False)().element_spec
    assert spec == {"a": tf.TensorSpec([None, 2], tf.int32), "t": tf.TensorSpec([None], tf.string)}


def test_a_batch_may_span_two_epochs() -> None:
    read = batches(numpy_input_fn(Y, batch_size=4, num_epochs=2, shuffle=False))
    assert [batch.tolist() for batch in read] == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4]]


def test_without_num_epochs_it_never_ends() -> None:
    assert len(batches(numpy_input_fn(Y, batch_size=5, num_epochs=None, shuffle=False), limit=50)) == 50


def test_shuffle_permutes_each_epoch_differently_and_keeps_rows_together() -> None:
    input_fn = numpy_input_fn(np.arange(100), np.arange(100) * 2, batch_size=100, num_epochs=3, shuffle=True)
    read = batches(input_fn, seed=1)
    orders = [tuple(features.tolist()) for features, _ in read]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert all(np.array_equal(labels, 2 * features) for features, labels in read)
    assert [tuple(features.tolist()) for features, _ in batches(input_fn, seed=1)] == orders
    assert [tuple(features.tolist()) for features, _ in batches(input_fn, seed=2)] != orders


def test_text_of_every_kind_becomes_strings() -> None:
    kinds = {
        "str": np.array(["ä", "b"]),
        "bytes": np.array([b"\xff\x00", b"b"]),
        "object": np.array(["ä", b"b"], object),
    }
    (read,) = batches(numpy_input_fn(kinds, shuffle=False))
    assert read["str"].tolist() == ["ä".encode(), b"b"]
    assert read["object"].tolist() == ["ä".encode(), b"b"]
    assert read["bytes"].tolist() == [b"\xff", b"b"]  # NumPy itself drops zeros at the end


def test_a_frame_feeds_its_columns() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]}, index=[5, 6, 7])
    read = batches(pandas_input_fn(frame, pd.Series([0.5, 1.5, 2.5], index=frame.index), batch_size=2, shuffle=False))
    assert [features["a"].tolist() for features, _ in read] == [[1, 2], [3]]
    assert [features["b"].tolist() for features, _ in read] == [[b"x", b"y"], [b"z"]]
    assert [labels.tolist() for _, labels in read] == [[0.5, 1.5], [2.5]]
    assert set(read[0][0]) == {"a", "b"}


def test_a_frame_of_labels_becomes_a_dict() -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    ((features, labels),) = batches(pandas_input_fn(frame, pd.DataFrame({"a": [3, 4], "c": [5, 6]}), shuffle=False))
    assert features["a"].tolist() == [1, 2]
    assert {name: values.tolist() for name, values in labels.items()} == {"a": [3, 4], "c": [5, 6]}
    (alone,) = batches(pandas_input_fn(frame, shuffle=False))
    assert alone["a"].tolist() == [1, 2]


def test_arrays_are_not_constants_of_the_graph() -> None:
    large = np.zeros((1000, 1000))
    with tf.Graph().as_default() as graph:
        numpy_input_fn(large, shuffle=True)()
        assert graph.as_graph_def().ByteSize() < 100_000


def test_the_input_can_be_serialized() -> None:
    deserialized = pickle.loads(cloudpickle.dumps(numpy_input_fn({"a": X}, Y, shuffle=False)))
    ((features, labels),) = batches(deserialized)
    assert np.array_equal(features["a"], X)
    assert np.array_equal(labels, Y)


def columns_model_fn(features: Any, labels: Any, mode: str, params: Any) -> Any:
    x = tf.stack([features[name] for name in "abcd"], axis=1)
    return linear_model_fn({"x": x}, None if labels is None else labels[:, None], mode, params)


@pytest.mark.parametrize("kind", ["numpy", "pandas"])
def test_a_model_trains_evaluates_and_predicts_on_it(in_process: Any, kind: str) -> None:
    frame = pd.DataFrame(models.X, columns=list("abcd"))

    def read(shuffle: bool, num_epochs: int) -> Any:
        if kind == "numpy":
            return numpy_input_fn({"x": models.X}, models.Y, 16, num_epochs, shuffle)
        return pandas_input_fn(frame, pd.Series(models.Y[:, 0]), 16, num_epochs, shuffle)

    model_fn = {"numpy": linear_model_fn, "pandas": columns_model_fn}[kind]
    estimator = in_process(model_fn, params={"learning_rate": 0.1}).train(read(True, 10))
    assert estimator.evaluate(read(False, 1))["loss"] < 1e-3
    rows = [row["y"] for row in estimator.predict(read(False, 1))]
    assert np.allclose(rows, models.Y, atol=0.1)
