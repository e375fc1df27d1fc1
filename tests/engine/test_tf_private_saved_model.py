"""Private names of TensorFlow's SavedModel export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from support.processes import session

from ray_estimator._tf_private import saved_model
from ray_estimator.export import PredictOutput, ServingInputReceiver

v1 = tf.compat.v1


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    """A new graph for each test."""
    with tf.Graph().as_default() as graph:
        yield graph


def test_signature_defs_name_inputs_and_outputs() -> None:
    x = v1.placeholder(tf.float32, [None, 2], name="x")
    receiver = ServingInputReceiver({"x": x}, {"input": x})
    signatures = saved_model.signature_defs(receiver, {"serving_default": PredictOutput({"double": x * 2})})
    signature = signatures["serving_default"]
    assert signature.inputs["input"].name == "x:0"
    assert list(signature.outputs) == ["double"]


def test_signature_defs_omit_tensors_that_the_receiver_does_not_feed() -> None:
    x, unfed = v1.placeholder(tf.float32, [2]), v1.placeholder(tf.float32, [2])
    receiver = ServingInputReceiver({"x": x}, {"x": x}, {"other": {"unfed": unfed}})
    outputs = {"good": PredictOutput({"double": x * 2}), "bad": PredictOutput({"sum": x + unfed})}
    assert list(saved_model.signature_defs(receiver, outputs)) == ["good"]


def test_export_outputs_are_the_served_ones_or_one_of_loss_predictions_and_metrics() -> None:
    loss, update = tf.constant(1.0), tf.no_op()
    served = {"serving_default": PredictOutput(loss)}
    rest: dict[str, Any] = {"predictions": {"p": loss}, "loss": loss, "metrics": {"m": (loss, update)}}
    for mode, names in {"infer": ["serving_default"], "train": ["train"], "eval": ["eval"]}.items():
        outputs = saved_model.export_outputs(mode, served=served, **rest)
        assert list(outputs) == names
    assert set(outputs["eval"].metrics) == {"metrics/m/value", "metrics/m/update_op"}
    assert set(outputs["eval"].predictions) == {"predictions/p"}


def test_keep_train_op_is_found_by_loaders() -> None:
    from tensorflow.python.saved_model.loader_impl import get_train_op

    train_op = tf.no_op("train")
    saved_model.keep_train_op(train_op)
    assert get_train_op(v1.train.export_meta_graph()) is train_op


def test_saver_of_objects_restores_the_variables_of_the_checkpoint(tmp_path: Path) -> None:
    weight = v1.get_variable("weight", [], initializer=v1.constant_initializer(3.0))
    v1.get_variable("unnamed", [], initializer=v1.zeros_initializer())
    saver = saved_model.saver_of_objects(tf.train.Checkpoint(w=weight))
    with session() as opened:
        path = saver.save(opened, str(tmp_path / "model.ckpt"))
        opened.run(weight.assign(0.0))
        saver.restore(opened, path)
        assert opened.run(weight) == 3.0
    assert "w/.ATTRIBUTES/VARIABLE_VALUE" in dict(tf.train.list_variables(path))


def test_output_class_is_the_one_of_tensorflows_loaders() -> None:
    predicted = saved_model.output_class("PredictOutput")(tf.constant(1.0))
    assert isinstance(predicted, saved_model.output_class("ExportOutput"))
    assert list(predicted.outputs) == ["output"]
