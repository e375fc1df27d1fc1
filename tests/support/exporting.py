"""Models to export, receivers, and readers of what an export leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator import EstimatorSpec, ModeKeys, export
from support.models import endless_input_fn

RAW = export.build_raw_serving_input_receiver_fn({"x": tf.TensorSpec([None, 4], tf.float32)})
PARSING = export.build_parsing_serving_input_receiver_fn({"x": tf.io.FixedLenFeature([4], tf.float32)})
SUPERVISED = export.build_raw_supervised_input_receiver_fn(
    {"x": tf.TensorSpec([None, 4], tf.float32)}, tf.TensorSpec([None, 1], tf.float32)
)
PREDICT_METHOD = "tensorflow/serving/predict"


def train_on_anything(mode: str) -> EstimatorSpec:
    """A TRAIN spec for models that are about their export."""
    return EstimatorSpec(mode, loss=tf.constant(1.0), train_op=v1.assign_add(v1.train.get_global_step(), 1))


def exporting(build: Callable[[Any], Mapping[str, Any]]) -> Callable[..., EstimatorSpec]:
    """A model_fn whose PREDICT spec has the fields that `build` makes of the features."""

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return train_on_anything(mode) if mode == ModeKeys.TRAIN else EstimatorSpec(mode, **build(features))

    return model_fn


def exported(in_process: Callable[..., Any], model_fn: Any, receiver_fn: Any, tmp_path: Path, **arguments: Any) -> str:
    """The directory of an export of the model, trained for one step."""
    estimator = in_process(model_fn).train(endless_input_fn, steps=1)
    return str(estimator.export_savedmodel(tmp_path / "export", receiver_fn, **arguments))


def signatures_of(folder: str, tag: str = tf.saved_model.SERVING) -> dict[str, Any]:
    """The SignatureDefs, by name, of the MetaGraph of a tag."""
    with tf.Graph().as_default(), v1.Session() as session:
        return dict(v1.saved_model.loader.load(session, [tag], folder).signature_def)


def served(folder: str, signature: str = "serving_default", **inputs: Any) -> dict[str, Any]:
    """What a signature of a freshly loaded SavedModel gives."""
    loaded = tf.saved_model.load(folder, tags=[tf.saved_model.SERVING])
    outputs = loaded.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}


class Loaded:
    """A MetaGraph in a session of its own, for `with`: runs a signature as a serving process does."""

    def __init__(self, folder: str, tag: str) -> None:
        self._folder = folder
        self._tag = tag
        self.graph = tf.Graph()
        self.session = v1.Session(graph=self.graph)

    def __enter__(self) -> Loaded:
        self.session.__enter__()
        self.meta_graph = v1.saved_model.loader.load(self.session, [self._tag], self._folder)
        return self

    def __exit__(self, *error: Any) -> None:
        self.session.__exit__(*error)
        self.session.close()

    def fed(self, signature: str, **inputs: Any) -> dict[str, Any]:
        """Values by the name of the tensor that an input of the signature is."""
        tensors = self.meta_graph.signature_def[signature].inputs
        return {tensors[name].name: value for name, value in inputs.items()}

    def run(self, signature: str, outputs: list[str] | None = None, **inputs: Any) -> dict[str, Any]:
        """The outputs of a signature, all or those that are named."""
        tensors = self.meta_graph.signature_def[signature].outputs
        names = {name: tensors[name].name for name in (outputs or tensors)}
        return dict(self.session.run(names, self.fed(signature, **inputs)))
