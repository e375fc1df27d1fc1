"""Private names of TensorFlow's SavedModel export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1
from tensorflow.python.checkpoint import graph_view
from tensorflow.python.saved_model import constants
from tensorflow.python.saved_model.model_utils import export_output, export_utils


def export_outputs(
    mode: str, *, served: Mapping[str, Any] | None, predictions: Any, loss: Any, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the ExportOutputs of a mode by signature name: `served` in PREDICT, otherwise one of everything else."""
    outputs = export_utils.export_outputs_for_mode(
        mode=mode, serving_export_outputs=served, predictions=predictions, loss=loss, metrics=metrics
    )
    return dict(outputs)


def output_class(name: str) -> Any:
    """Return the class of TensorFlow's ExportOutputs with this name, such as ``PredictOutput``."""
    return getattr(export_output, name)


def signature_defs(receiver: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return SignatureDefs by name, including those of the receiver's alternatives.

    A signature that needs tensors which the receiver does not feed, or whose inputs do not fit its kind, is logged and
    omitted.
    """
    signatures = export_utils.build_all_signature_defs(
        receiver.receiver_tensors, outputs, getattr(receiver, "receiver_tensors_alternatives", None), serving_only=False
    )
    return dict(signatures)


def keep_train_op(train_op: tf.Operation) -> None:
    """Add `train_op` to the collection in which loaders of a SavedModel look for it."""
    v1.add_to_collection(constants.TRAIN_OP_KEY, train_op)


def saver_of_objects(checkpoint: tf.train.Checkpoint) -> v1.train.Saver:
    """Return the saver that a Scaffold makes from a `tf.train.Checkpoint`."""
    return v1.train.Saver(graph_view.ObjectGraphView(checkpoint).frozen_saveable_objects(), sharded=True)
