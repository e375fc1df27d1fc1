"""Trains, evaluates and predicts with heads and canned estimators: `canned_script.py NAME...`; a line of JSON for each.

Keras is chosen by the environment, so each Keras needs a process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import ray_estimator

ray_estimator.install()

# ruff: noqa: E402
import numpy as np
import tensorflow as tf
from ray.train import ScalingConfig

v1 = tf.compat.v1
rng = np.random.default_rng(0)
NUM_ROWS = 256
X = rng.normal(size=(NUM_ROWS, 2)).astype("float32")
KINDS = rng.integers(0, 2, NUM_ROWS)
SCORE = X[:, 0] - X[:, 1] + KINDS
CLASSES = (SCORE > 0.5).astype("int64")
THREE = np.digitize(SCORE, [0.0, 1.0]).astype("int64")
MANY = np.stack([SCORE > 0, SCORE > 1], axis=1).astype("int64")
FEATURES = {"x": X, "kind": np.array([["a"], ["b"]])[KINDS]}


def rows(features: Any, labels: Any, passes: int) -> Callable[[], tf.data.Dataset]:
    def input_fn() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices((features, labels)).batch(64).repeat(passes)

    return input_fn


def config() -> Any:
    return tf.estimator.RunConfig(tempfile.mkdtemp(), tf_random_seed=1, scaling_config=ScalingConfig(num_workers=0))


def shown(estimator: Any, labels: Any, features: Any = FEATURES) -> dict[str, Any]:
    one_pass = rows(features, labels, 1)
    before = estimator.evaluate(one_pass, allow_untrained=True)
    estimator.train(rows(features, labels, 40))
    after = estimator.evaluate(one_pass)
    predicted = [row for _, row in zip(range(3), estimator.predict(one_pass), strict=False)]
    numbers = {key: float(value) for key, value in after.items()}
    return {**numbers, "before": float(before["loss"]), "predictions": sorted(predicted[0]), "rows": len(predicted)}


# Canned estimators


def columns(names: Any) -> tuple[list[Any], list[Any]]:
    """Columns for a DNN and for a linear model."""
    kind = names.categorical_column_with_vocabulary_list("kind", ["a", "b"])
    x = names.numeric_column("x", shape=(2,))
    return [x, names.indicator_column(kind)], [x, kind]


def canned(names: Any, family: str, kind: str, adam: Any, head: Any) -> dict[str, Any]:
    dense, sparse = columns(tf.feature_column)
    what: dict[str, Any] = {
        "DNN": {"hidden_units": [8], "feature_columns": dense, "optimizer": adam},
        "Linear": {"feature_columns": sparse, "optimizer": adam},
        "DNNLinearCombined": {
            "linear_feature_columns": sparse,
            "linear_optimizer": adam,
            "dnn_feature_columns": dense,
            "dnn_optimizer": adam,
            "dnn_hidden_units": [8],
        },
        "Baseline": {"optimizer": adam},
    }[family]
    if kind == "Estimator":
        what["head"] = head
    estimator = getattr(names, f"{family}{kind}")(config=config(), **what)
    if family == "Baseline":  # takes one feature, and learns nothing but a mean
        labels = SCORE + 5 if kind == "Regressor" else np.ones_like(CLASSES)
        return shown(estimator, labels.reshape(-1, 1), {"x": X})
    return shown(estimator, (SCORE if kind == "Regressor" else CLASSES).reshape(-1, 1))


def canned_v1(family: str, kind: str) -> dict[str, Any]:
    """With v1 optimizers, and a head as estimators of tf.compat.v1 take it."""
    from tensorflow.python.estimator.canned import head

    old_head = head._binary_logistic_head_with_sigmoid_cross_entropy_loss()
    return canned(v1.estimator, family, kind, lambda: v1.train.AdamOptimizer(0.05), old_head)


def canned_v2(family: str, kind: str) -> dict[str, Any]:
    """With Keras optimizers and heads."""
    head = tf.estimator.BinaryClassHead()
    return canned(tf.estimator, family, kind, lambda: tf.keras.optimizers.legacy.Adam(0.05), head)


def kmeans() -> dict[str, Any]:
    points = np.concatenate([X, X + 20])

    def input_fn() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors({"x": points}).repeat(10)

    column = v1.feature_column.numeric_column("x", shape=(2,))
    model = v1.estimator.experimental.KMeans(2, feature_columns=[column], use_mini_batch=False, seed=1, config=config())
    model.train(input_fn)
    return {"centers": sorted(model.cluster_centers().mean(axis=1).tolist())}


def linear_sdca() -> dict[str, Any]:
    features = {**FEATURES, "id": np.arange(NUM_ROWS).astype(str)}
    sdca = tf.estimator.experimental.LinearSDCA("id", symmetric_l2_regularization=1.0)
    _, sparse = columns(tf.feature_column)
    model = tf.estimator.LinearClassifier(sparse, optimizer=sdca, config=config())
    return shown(model, CLASSES.reshape(-1, 1), features)


def rnn() -> dict[str, Any]:
    words = rng.integers(0, 5, (NUM_ROWS, 4)) + 5 * CLASSES.reshape(-1, 1)

    def input_fn() -> tf.data.Dataset:
        read = tf.data.Dataset.from_tensor_slices((words, CLASSES.reshape(-1, 1))).batch(64)
        return read.map(lambda words, label: ({"words": tf.sparse.from_dense(words + 1)}, label))

    column = tf.feature_column.sequence_categorical_column_with_identity("words", 16)
    model = tf.estimator.experimental.RNNClassifier(
        [tf.feature_column.indicator_column(column)],
        units=[8],
        optimizer=lambda: tf.keras.optimizers.legacy.Adam(0.05),
        config=config(),
    )
    model.train(lambda: input_fn().repeat(20))
    return {name: float(value) for name, value in model.evaluate(input_fn).items()}


# Heads in a model_fn of one's own


def with_head(make_head: Callable[[], Any], labels: Any) -> dict[str, Any]:
    def model_fn(features: Any, labels: Any, mode: str, config: Any) -> Any:
        head = make_head()
        layer = tf.keras.layers.Dense(head.logits_dimension if isinstance(head.logits_dimension, int) else 2)
        logits = layer(tf.concat([features["x"], tf.cast(tf.equal(features["kind"], "b"), tf.float32)], axis=1))
        if isinstance(head, tf.estimator.MultiHead):
            logits = {"first": logits[:, :1], "second": logits[:, 1:]}
        optimizer = None
        if mode == tf.estimator.ModeKeys.TRAIN:
            optimizer = tf.keras.optimizers.legacy.Adam(0.05)
            optimizer.iterations = v1.train.get_or_create_global_step()
        return head.create_estimator_spec(
            features, mode, logits, labels, optimizer=optimizer, trainable_variables=layer.trainable_variables
        )

    spec = {"x": tf.io.FixedLenFeature([2], tf.float32), "kind": tf.io.FixedLenFeature([1], tf.string)}
    receiver_fn = tf.estimator.export.build_parsing_serving_input_receiver_fn(spec)
    estimator = tf.estimator.Estimator(model_fn, config=config())
    seen = shown(estimator, labels)
    exported = estimator.export_savedmodel(tempfile.mkdtemp(), receiver_fn)
    return {**seen, "signatures": sorted(tf.saved_model.load(exported).signatures)}


def binary_class_head() -> dict[str, Any]:
    return with_head(tf.estimator.BinaryClassHead, CLASSES.reshape(-1, 1))


def multi_class_head() -> dict[str, Any]:
    return with_head(lambda: tf.estimator.MultiClassHead(3), THREE.reshape(-1, 1))


def multi_label_head() -> dict[str, Any]:
    return with_head(lambda: tf.estimator.MultiLabelHead(2), MANY)


def regression_head() -> dict[str, Any]:
    return with_head(tf.estimator.RegressionHead, SCORE.reshape(-1, 1).astype("float32"))


def poisson_regression_head() -> dict[str, Any]:
    return with_head(tf.estimator.PoissonRegressionHead, np.exp(SCORE).reshape(-1, 1).astype("float32"))


def logistic_regression_head() -> dict[str, Any]:
    return with_head(tf.estimator.LogisticRegressionHead, CLASSES.reshape(-1, 1).astype("float32"))


def multi_head() -> dict[str, Any]:
    labels = {"first": CLASSES.reshape(-1, 1), "second": SCORE.reshape(-1, 1).astype("float32")}
    heads = tf.estimator.BinaryClassHead, tf.estimator.RegressionHead
    return with_head(
        lambda: tf.estimator.MultiHead([head(name=name) for head, name in zip(heads, labels, strict=True)]), labels
    )


def old_multi_class_head() -> dict[str, Any]:
    """A head of tf.compat.v1's time, from its private module; it knows no Keras."""
    from tensorflow.python.estimator.canned import head as old_heads

    def model_fn(features: Any, labels: Any, mode: str, config: Any) -> Any:
        head = old_heads._multi_class_head_with_softmax_cross_entropy_loss(3)
        weights = v1.get_variable("weights", [2, 3])
        adam = v1.train.AdamOptimizer(0.05)
        return head.create_estimator_spec(features, mode, features["x"] @ weights, labels, optimizer=adam)

    return shown(v1.estimator.Estimator(model_fn, config=config()), THREE.reshape(-1, 1))


def main(*names: str) -> None:
    for name in names:
        function, _, arguments = name.partition(":")
        try:
            result = globals()[function](*filter(None, arguments.split(",")))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}", "notes": getattr(error, "__notes__", [])}
        print("RESULT", name, json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
