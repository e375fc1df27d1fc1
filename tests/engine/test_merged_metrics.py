"""Metrics of TensorFlow 1 and Keras 3 over row ranges give the results of a single pass; others are refused."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from ray.train import ScalingConfig

from ray_estimator import EstimatorSpec, RunConfig
from ray_estimator._data.columns import column_specs
from ray_estimator._engine import evaluate
from ray_estimator._jobs.jobs import EvaluateJob, RowSpec
from ray_estimator._jobs.metric_state import MetricState, merged
from ray_estimator._jobs.serialization import pack
from ray_estimator._jobs.worker import Tables

NUM_ROWS = 203
NUM_CLASSES = 3
BATCH = 8  # 26 batches, the last of 3 rows
STATE = [v1.GraphKeys.LOCAL_VARIABLES, v1.GraphKeys.METRIC_VARIABLES]
_rng = np.random.default_rng(5)
_label = _rng.integers(0, NUM_CLASSES, NUM_ROWS)
TABLE = pa.table(
    {
        "a": _rng.random(NUM_ROWS, np.float32),
        "b": _rng.random(NUM_ROWS, np.float32),
        "weight": (_rng.random(NUM_ROWS, np.float32) + 0.5).astype(np.float32),
        "guess": np.where(_rng.random(NUM_ROWS) < 0.6, _label, _rng.integers(0, NUM_CLASSES, NUM_ROWS)),
        "label": _label,
    }
)


def job_of(model_fn: Callable[..., Any], model_dir: Path) -> EvaluateJob:
    rows = RowSpec(
        features=column_specs(TABLE.schema, ["a", "b", "weight", "guess"]),
        labels=column_specs(TABLE.schema, ["label"]),
        single_label=True,
        batch_size=BATCH,
    )
    config = RunConfig(scaling_config=ScalingConfig(num_workers=0), model_dir=str(model_dir))
    return EvaluateJob(pack({"model_fn": model_fn, "params": {}}), config, str(model_dir), rows)


def ranges_of(num_ranges: int) -> list[Tables]:
    """The table in ranges of whole batches; some ranges are empty if there are more ranges than batches."""
    num_batches = -(-NUM_ROWS // BATCH)
    cuts = [num_batches * number // num_ranges * BATCH for number in range(num_ranges + 1)]
    parts = [TABLE.slice(start, stop - start) for start, stop in itertools.pairwise(cuts)]
    return [lambda part=part: iter([part]) for part in parts]  # type: ignore[misc]


def states_of(job: EvaluateJob, num_ranges: int) -> list[MetricState]:
    return [evaluate.accumulate(job, tables) for tables in ranges_of(num_ranges)]


# Mergeable metrics


def v1_metrics(features: Any, labels: Any, weights: Any) -> dict[str, Any]:
    """Every metric of `tf.compat.v1.metrics`."""
    score, metrics, at = features["a"], v1.metrics, [0.2, 0.5, 0.8]
    positive, flag = labels > 0, score > 0.5
    scores = tf.stack([features["a"], features["b"], 1 - features["a"]], axis=1)
    column = labels[:, tf.newaxis]
    wide = None if weights is None else weights[:, tf.newaxis]
    truth = tf.cast(positive, tf.float32)
    made = {
        "mean": metrics.mean(score, weights),
        "mean_tensor": metrics.mean_tensor(scores[0], None if weights is None else weights[0]),
        "mean_iou": metrics.mean_iou(labels, features["guess"], NUM_CLASSES, weights),
        "mean_per_class_accuracy": metrics.mean_per_class_accuracy(labels, features["guess"], NUM_CLASSES, weights),
        "mean_cosine_distance": metrics.mean_cosine_distance(scores, scores[:, ::-1], 1, wide),
        "mean_relative_error": metrics.mean_relative_error(truth, score, 1 + features["b"], weights),
        "percentage_below": metrics.percentage_below(score, 0.4, weights),
        "accuracy": metrics.accuracy(labels, features["guess"], weights),
        "auc": metrics.auc(positive, score, weights, 50, curve="PR", summation_method="careful_interpolation"),
        "sensitivity_at_specificity": metrics.sensitivity_at_specificity(positive, score, 0.4, weights, 50),
        "specificity_at_sensitivity": metrics.specificity_at_sensitivity(positive, score, 0.4, weights, 50),
        "precision_at_top_k": metrics.precision_at_top_k(column, tf.math.top_k(scores, 2).indices, 2, weights=weights),
        "recall_at_top_k": metrics.recall_at_top_k(column, tf.math.top_k(scores, 2).indices, 2, weights=weights),
    }
    for name in ("mean_absolute_error", "mean_squared_error", "root_mean_squared_error"):
        made[name] = getattr(metrics, name)(truth, score, weights)
    for name in ("precision", "recall", "true_positives", "true_negatives", "false_positives", "false_negatives"):
        made[name] = getattr(metrics, name)(positive, flag, weights)
        made[f"{name}_at_thresholds"] = getattr(metrics, f"{name}_at_thresholds")(positive, score, at, weights)
    for name in ("precision_at_k", "sparse_precision_at_k", "recall_at_k"):
        made[name] = getattr(metrics, name)(column, scores, 2, weights=weights)
        made[f"{name} of a class"] = getattr(metrics, name)(column, scores, 2, class_id=1, weights=weights)
    for name in ("average_precision_at_k", "sparse_average_precision_at_k"):
        made[name] = getattr(metrics, name)(column, scores, 2, weights=weights)
    return made


def keras_metrics(features: Any, labels: Any, weights: Any) -> dict[str, Any]:
    """Every metric class of Keras."""
    score = features["a"]
    scores = tf.nn.softmax(tf.stack([features["a"], features["b"], 1 - features["a"]], axis=1) * 3)
    truth = tf.cast(labels > 0, tf.float32)
    one_hot = tf.one_hot(labels, NUM_CLASSES)
    binary, several, sparse = (truth[:, None], score[:, None]), (one_hot, scores), (labels, scores)
    arguments = {
        "PrecisionAtRecall": (0.5,),
        "RecallAtPrecision": (0.5,),
        "SensitivityAtSpecificity": (0.5,),
        "SpecificityAtSensitivity": (0.5,),
        "IoU": (NUM_CLASSES, [0, 2]),
        "MeanIoU": (NUM_CLASSES,),
        "OneHotIoU": (NUM_CLASSES, [0, 2]),
        "OneHotMeanIoU": (NUM_CLASSES,),
        "MeanMetricWrapper": (lambda y_true, y_pred: tf.abs(y_true - y_pred),),
        "SparseTopKCategoricalAccuracy": (2,),
        "TopKCategoricalAccuracy": (2,),
    }
    inputs = {
        **dict.fromkeys(["Mean", "Sum"], (score,)),
        **dict.fromkeys(["Accuracy", "IoU", "MeanIoU"], (labels, features["guess"])),
        **dict.fromkeys(["SparseCategoricalAccuracy", "SparseTopKCategoricalAccuracy"], sparse),
        "SparseCategoricalCrossentropy": sparse,
        **dict.fromkeys(["CategoricalAccuracy", "TopKCategoricalAccuracy", "CategoricalCrossentropy"], several),
        **dict.fromkeys(["F1Score", "FBetaScore", "OneHotIoU", "OneHotMeanIoU", "KLDivergence"], several),
        **dict.fromkeys(["CategoricalHinge", "CosineSimilarity", "PearsonCorrelation"], several),
        "ConcordanceCorrelation": several,
    }
    made = {}
    for name, kind in vars(keras.metrics).items():
        if inspect.isclass(kind) and kind is not keras.metrics.Metric:
            made[name] = kind(*arguments.get(name, ()))
            counts = weights is not None and "IoU" in name  # their weights are integers
            sample_weight = tf.cast(weights * 4, tf.int32) if counts else weights
            made[name].update_state(*inputs.get(name, binary), sample_weight=sample_weight)
    return made


def model_of(metrics_of: Callable[..., dict[str, Any]], *, weighted: bool) -> Callable[..., EstimatorSpec]:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        metrics = metrics_of(features, labels, features["weight"] if weighted else None)
        loss = tf.reduce_mean(tf.square(features["a"] - tf.cast(labels, tf.float32)))
        return EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)

    return model_fn


def names_of(module: Any) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("metrics_of", [v1_metrics, keras_metrics])
def test_every_metric_of_tensorflow_and_keras_merges_to_the_result_of_a_single_pass(
    tmp_path: Path, metrics_of: Callable[..., Any], weighted: bool
) -> None:
    job = job_of(model_of(metrics_of, weighted=weighted), tmp_path)
    single = evaluate.run(job, lambda: iter([TABLE]))
    if metrics_of is v1_metrics:
        assert names_of(v1.metrics) <= set(single)

    for num_ranges in (1, 2, 3, 7, 30):
        states = states_of(job, num_ranges)
        assert {state.unmergeable for state in states} == {None}
        assert (0 in {state.num_batches for state in states}) == (num_ranges == 30)
        result = evaluate.finish(job, merged(states))
        assert set(result) == set(single)
        for name, value in single.items():
            np.testing.assert_allclose(result[name], value, rtol=1e-6, err_msg=f"{name} in {num_ranges} ranges")


# Metrics that are not mergeable, or not provably so


def state_variable(value: Any, name: str) -> Any:
    return v1.Variable(value, trainable=False, collections=STATE, name=name)


def welford(features: Any, labels: Any) -> tuple[Any, Any]:
    """A running variance: the added amount depends on the running mean."""
    count, mean, total = (state_variable(0.0, name) for name in ("count", "mean", "total"))
    value = tf.reduce_mean(features["a"])
    rows = tf.cast(tf.shape(features["a"])[0], tf.float32)
    difference = value - mean
    step = difference * rows / (count + rows)
    update = tf.group(v1.assign_add(total, difference * step), v1.assign_add(mean, step), v1.assign_add(count, rows))
    return total / tf.maximum(count, 1.0), update


def rare_maximum(features: Any, labels: Any) -> tuple[Any, Any]:
    """Always 0, so that it looks like a sum."""
    highest = state_variable(0.0, "highest")
    return tf.identity(highest), v1.assign(highest, tf.maximum(highest, tf.reduce_max(features["a"]) * 0))


def moving_average(features: Any, labels: Any) -> tuple[Any, Any]:
    average = state_variable(0.0, "average")
    return tf.identity(average), v1.assign(average, 0.9 * average + 0.1 * tf.reduce_mean(features["a"]))


def subtracted_from(features: Any, labels: Any) -> tuple[Any, Any]:
    other = state_variable(0.0, "other")
    return tf.identity(other), v1.assign(other, tf.reduce_mean(features["a"]) - other)


def sum_while_small(features: Any, labels: Any) -> tuple[Any, Any]:
    total = state_variable(0.0, "total")
    update = tf.cond(total < 1, lambda: v1.assign_add(total, 0.5), lambda: tf.identity(total))
    return tf.identity(total), update


def python_list(features: Any, labels: Any) -> tuple[Any, Any]:
    seen: list[float] = []

    def remember(values: Any) -> Any:
        seen.extend(values)
        return np.float32(0)

    update = tf.numpy_function(remember, [features["a"]], tf.float32)
    return tf.numpy_function(lambda: np.float32(np.median(seen or [0])), [], tf.float32), update


def distinct_labels(features: Any, labels: Any) -> tuple[Any, Any]:
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)
    total = state_variable(tf.constant(0, tf.int64), "distinct")
    new = tf.reduce_sum(tf.cast(table.lookup(labels[:1]) < 0, tf.int64))
    with tf.control_dependencies([new]):
        insert = table.insert(labels[:1], labels[:1])
    return tf.identity(total), tf.group(v1.assign_add(total, new), insert)


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (welford, r"adds to the metric variable '(total|mean)' depends on earlier updates"),
        (rare_maximum, "does more than add to the metric variable 'highest'"),
        (moving_average, "does more than add to the metric variable 'average'"),
        (subtracted_from, "does more than add to the metric variable 'other'"),
        (sum_while_small, "(does more than add to|adds to) the metric variable 'total'"),
        (python_list, "the value of the metric 'odd' comes from PyFunc, which may remember batches"),
        (distinct_labels, "adds to the metric variable 'distinct' depends on earlier updates"),
    ],
)
def test_other_metrics_are_refused_with_a_reason(tmp_path: Path, metric: Callable[..., Any], reason: str) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return EstimatorSpec(mode, loss=tf.constant(1.0), eval_metric_ops={"odd": metric(features, labels)})

    for state in states_of(job_of(model_fn, tmp_path), 2):
        assert state.unmergeable is not None
        assert re.search(reason, state.unmergeable)


def assigned_sum(features: Any, labels: Any) -> tuple[Any, Any]:
    total = state_variable(0.0, "total")
    return tf.identity(total), v1.assign(total, tf.reduce_sum(features["a"]) + total)


def subtraction(features: Any, labels: Any) -> tuple[Any, Any]:
    total = state_variable(0.0, "total")
    return tf.identity(total), v1.assign_sub(total, tf.reduce_sum(features["a"]))


def counts_by_label(features: Any, labels: Any) -> tuple[Any, Any]:
    counts = state_variable(tf.zeros([NUM_CLASSES]), "counts")
    return tf.identity(counts), v1.scatter_add(counts, labels, tf.ones_like(features["a"]))


def mean_of_a_python_score(features: Any, labels: Any) -> tuple[Any, Any]:
    score = tf.numpy_function(lambda values: values * values, [features["a"]], tf.float32)
    score.set_shape([None])
    return v1.metrics.mean(score)


def sum_in_a_branch(features: Any, labels: Any) -> tuple[Any, Any]:
    first = tf.reduce_sum(tf.cond(features["a"][0] > 0.5, lambda: features["a"], lambda: features["b"]))
    total = state_variable(0.0, "total")
    return tf.identity(total), v1.assign_add(total, first)


@pytest.mark.parametrize(
    "metric", [assigned_sum, subtraction, counts_by_label, mean_of_a_python_score, sum_in_a_branch]
)
def test_sums_written_by_users_are_merged(tmp_path: Path, metric: Callable[..., Any]) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return EstimatorSpec(mode, loss=tf.constant(1.0), eval_metric_ops={"own": metric(features, labels)})

    job = job_of(model_fn, tmp_path)
    states = states_of(job, 3)

    assert [state.unmergeable for state in states] == [None] * 3
    single = evaluate.run(job, lambda: iter([TABLE]))["own"]
    np.testing.assert_allclose(evaluate.finish(job, merged(states))["own"], single, rtol=1e-6)
