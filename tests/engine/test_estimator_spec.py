"""EstimatorSpec in the engine. The checks of its constructor are in tests/unit/test_spec.py."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.models import X, Y, endless_input_fn, linear_model_fn, one_pass_input_fn

from ray_estimator import EstimatorSpec, ModeKeys
from ray_estimator.export import PredictOutput

Make = Callable[..., Any]


# 1


def test_a3_1_one_return_serves_every_mode(in_process: Make) -> None:
    """A mode ignores the fields that it does not need, such as train_op in EVAL."""

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
        predictions = weight * features[:, 0]
        loss = tf.reduce_mean(tf.square(predictions - (0.0 if labels is None else labels[:, 0])))
        return EstimatorSpec(
            mode,
            predictions={"p": predictions},
            loss=loss,
            train_op=v1.train.GradientDescentOptimizer(0.1).minimize(loss, v1.train.get_global_step()),
            eval_metric_ops={"mean": v1.metrics.mean(predictions)},
            export_outputs={"a": PredictOutput(predictions), "serving_default": PredictOutput(predictions)},
        )

    estimator = in_process(model_fn).train(endless_input_fn, steps=1)
    weight = estimator.get_variable_value("weight")

    first, second = (estimator.evaluate(one_pass_input_fn) for _ in range(2))
    rows = [row["p"] for row in estimator.predict(one_pass_input_fn)]

    assert first == second
    np.testing.assert_allclose(rows, weight * X[:, 0], rtol=1e-6)
    assert estimator.get_variable_value("weight") == weight != 0
    assert estimator.get_variable_value("global_step") == 1


# 2


def test_a3_2_a_loss_of_one_element_is_a_scalar(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        spec = linear_model_fn(features, labels, mode, {})
        return spec._replace(loss=tf.reshape(spec.loss, [1]))

    estimator = in_process(model_fn).train(endless_input_fn, steps=1)

    assert np.ndim(estimator.evaluate(one_pass_input_fn)["loss"]) == 0


# 3


@pytest.mark.parametrize(
    "as_train_op",
    [lambda op: op, lambda op: tf.group(op), lambda op: tf.identity(op), lambda op: op.op],
    ids=["variable", "group", "tensor", "operation"],
)
def test_a3_3_a_train_op_of_any_kind_runs_once_a_step(in_process: Make, as_train_op: Callable[[Any], Any]) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        tally = v1.get_variable("tally", [], initializer=v1.zeros_initializer())
        return EstimatorSpec(mode, loss=tf.constant(1.0), train_op=as_train_op(tally.assign_add(1.0)))

    estimator = in_process(model_fn).train(endless_input_fn, steps=3)

    assert estimator.get_variable_value("tally") == 3.0
    assert estimator.get_variable_value("global_step") == 3


# 6


@pytest.mark.parametrize("flavour", ["keras", "tf_keras"])
def test_a3_6_keras_metrics_are_metric_state(in_process: Make, flavour: str) -> None:
    collected: dict[str, set[str]] = {}

    class NoteCollections(v1.train.SessionRunHook):
        def begin(self) -> None:
            for key in ("LOCAL_VARIABLES", "METRIC_VARIABLES", "GLOBAL_VARIABLES"):
                collected[key] = {variable.name for variable in v1.get_collection(getattr(v1.GraphKeys, key))}

    metrics_of_keras = importlib.import_module(flavour).metrics

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        spec = linear_model_fn(features, labels, mode, {})
        if mode != ModeKeys.EVAL:
            return spec
        error = metrics_of_keras.MeanAbsoluteError(name="error")
        error.update_state(labels, labels + 2.0)
        mean = metrics_of_keras.Mean(name="mean")
        mean.update_state(labels)
        return spec._replace(eval_metric_ops={"error": error, "mean": mean})

    estimator = in_process(model_fn).train(endless_input_fn, steps=1)
    result = estimator.evaluate(one_pass_input_fn, hooks=[NoteCollections()])

    assert result["error"] == pytest.approx(2.0)
    assert result["mean"] == pytest.approx(Y.mean(), rel=1e-4)
    of_keras = {name for name in collected["METRIC_VARIABLES"] if "total" in name or "count" in name}
    assert len(of_keras - {name for name in of_keras if name.startswith("mean/")}) >= 2
    assert of_keras <= collected["LOCAL_VARIABLES"]
    assert not of_keras & collected["GLOBAL_VARIABLES"]
    assert not [name for name in estimator.get_variable_names() if "total" in name]


def test_a3_6_values_may_be_nested_and_summaries(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        spec = linear_model_fn(features, labels, mode, {})
        if mode != ModeKeys.EVAL:
            return spec
        mean, update_op = v1.metrics.mean(labels)
        nested = {"mean": mean, "more": [mean + 1.0, (mean + 2.0,)]}
        picture = tf.raw_ops.HistogramSummary(tag="labels", values=[1.0, 2.0])
        metrics = {"nested": (nested, update_op), "picture": (picture, tf.no_op())}
        return spec._replace(eval_metric_ops=metrics)

    result = in_process(model_fn).train(endless_input_fn, steps=1).evaluate(one_pass_input_fn)

    mean = result["nested"]["mean"]
    assert mean == pytest.approx(Y.mean(), rel=1e-4)
    assert result["nested"]["more"] == [mean + 1.0, (mean + 2.0,)]
    assert v1.Summary.FromString(result["picture"]).value[0].tag == "labels"


def test_a3_6_a_keras_metric_that_was_never_updated_is_refused(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return linear_model_fn(features, labels, mode, {})._replace(eval_metric_ops={"mine": keras.metrics.Mean()})

    estimator = in_process(model_fn)

    with pytest.raises(ValueError, match=r'Please call update_state\(...\) on the "mine" metric'):
        estimator.evaluate(one_pass_input_fn, allow_untrained=True)


# Specs of other packages


def as_another_package(spec: EstimatorSpec, **changes: Any) -> Any:
    needed = ("mode", "predictions", "loss", "train_op", "eval_metric_ops")
    return types.SimpleNamespace(**{name: getattr(spec, name) for name in needed} | changes)


def test_a3_another_packages_spec_needs_no_more_than_the_fields_of_its_mode(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> Any:
        spec = linear_model_fn(features, labels, mode, {})
        return as_another_package(spec, predictions=spec.predictions or None)

    estimator = in_process(model_fn).train(endless_input_fn, steps=2)

    assert estimator.evaluate(one_pass_input_fn)["global_step"] == 2
    assert next(estimator.predict(one_pass_input_fn)).keys() == {"x", "y"}


def test_a3_another_packages_spec_is_checked_as_ours_is(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> Any:
        return as_another_package(linear_model_fn(features, labels, mode, {}), loss=tf.reduce_mean(features, axis=0))

    with pytest.raises(ValueError, match="Loss must be scalar, got "):
        in_process(model_fn).train(endless_input_fn, steps=1)
