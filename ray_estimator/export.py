"""Exports: input receivers, their builders, and export outputs.

    ServingInputReceiver, TensorServingInputReceiver    results of a serving_input_receiver_fn
    SupervisedInputReceiver                             the same with labels, for exports of TRAIN and EVAL
    build_..._receiver_fn                               return such functions
    PredictOutput, ClassificationOutput, ...            TensorFlow's values for EstimatorSpec's export_outputs

A receiver function runs in the graph of the export. The functions that the builders return hold dtypes and shapes but
no tensors, so they can be serialized. Importing this module does not import TensorFlow. Using it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_SINGLE_FEATURE = "feature"
_SINGLE_LABEL = "label"
_SINGLE_RECEIVER = "input"
_OUTPUTS = ("ClassificationOutput", "EvalOutput", "ExportOutput", "PredictOutput", "RegressionOutput")

__all__ = [  # noqa: F822  the outputs are imported from TensorFlow on first use
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
]


# Receivers


class _Receiver(NamedTuple):
    features: Any
    receiver_tensors: Mapping[str, Any]
    receiver_tensors_alternatives: Mapping[str, Mapping[str, Any]] | None


class ServingInputReceiver(_Receiver):
    """The inputs of an exported model, returned by a serving_input_receiver_fn.

    Args:
        features: Features for model_fn: a dict of Tensors by name or int, or one Tensor, which becomes
            ``{"feature": tensor}``.
        receiver_tensors: Inputs of the signature: a dict of Tensors by name, or one Tensor, which becomes
            ``{"input": tensor}``.
        receiver_tensors_alternatives: Further sets of inputs by name, each a dict or one Tensor. Each adds signatures.

    Raises:
        ValueError: A value is None or not a Tensor, or a key is not a string.
    """

    __slots__ = ()

    def __new__(
        cls, features: Any, receiver_tensors: Any, receiver_tensors_alternatives: Any = None
    ) -> ServingInputReceiver:
        """Check and name the tensors; see the class."""
        return super().__new__(
            cls,
            features=_named("feature", features, _SINGLE_FEATURE, int_keys=True),
            receiver_tensors=_named("receiver_tensor", receiver_tensors, _SINGLE_RECEIVER),
            receiver_tensors_alternatives=_alternatives(receiver_tensors_alternatives),
        )


class TensorServingInputReceiver(_Receiver):
    """A `ServingInputReceiver` for a model_fn whose features are one Tensor, which it gets unchanged."""

    __slots__ = ()

    def __new__(
        cls, features: Any, receiver_tensors: Any, receiver_tensors_alternatives: Any = None
    ) -> TensorServingInputReceiver:
        """Check and name the receiver's tensors; see the class."""
        if features is None:
            raise ValueError("features must be defined.")
        if not _is_tensor(features):
            raise ValueError(f"feature must be one Tensor, got {features!r}. For a dict use ServingInputReceiver.")
        return super().__new__(
            cls,
            features=features,
            receiver_tensors=_named("receiver_tensor", receiver_tensors, _SINGLE_RECEIVER),
            receiver_tensors_alternatives=_alternatives(receiver_tensors_alternatives),
        )


class _SupervisedReceiver(NamedTuple):
    features: Any
    labels: Any
    receiver_tensors: Mapping[str, Any]


class SupervisedInputReceiver(_SupervisedReceiver):
    """The inputs of a model that is exported in TRAIN or EVAL, returned by an input_receiver_fn.

    Args:
        features: Features for model_fn, passed unchanged: a Tensor, or a dict of Tensors by name or int.
        labels: Labels for model_fn, in the same form.
        receiver_tensors: Inputs of the signature: a dict of Tensors by name, or one Tensor, which becomes
            ``{"input": tensor}``.

    Raises:
        ValueError: A value is None or not a Tensor, or a key is not a string (in features and labels: or an int).
    """

    __slots__ = ()

    def __new__(cls, features: Any, labels: Any, receiver_tensors: Any) -> SupervisedInputReceiver:
        """Check the tensors and name the receiver's; see the class."""
        _named("feature", features, _SINGLE_FEATURE, int_keys=True)
        _named("label", labels, _SINGLE_LABEL, int_keys=True)
        return super().__new__(
            cls,
            features=features,
            labels=labels,
            receiver_tensors=_named("receiver_tensor", receiver_tensors, _SINGLE_RECEIVER),
        )


# Builders


def build_raw_serving_input_receiver_fn(
    features: Mapping[str, Any], default_batch_size: int | None = None
) -> Callable[[], ServingInputReceiver]:
    """Return a receiver function that takes features as they are.

    Args:
        features: Templates of the inputs' dtypes and shapes, by name: Tensors, SparseTensors, RaggedTensors, arrays or
            `tf.TypeSpec`s such as `tf.TensorSpec`. The first dimension is the batch. A placeholder gets the name of the
            Tensor's op, if it has one.
        default_batch_size: Batch dimension. None: any.

    Raises:
        TypeError: `features` is not a dict, or a value is not a tensor.
    """
    if not isinstance(features, Mapping):
        raise TypeError(
            f"features must be a dict of Tensors by name, got {features!r}. For a model_fn whose features are one "
            "Tensor write a function that returns TensorServingInputReceiver(tensor, tensor)."
        )
    templates = _templates("features", features)

    def serving_input_receiver_fn() -> ServingInputReceiver:
        placeholders = _placeholders(templates, default_batch_size)
        return ServingInputReceiver(placeholders, placeholders)

    return serving_input_receiver_fn


def build_parsing_serving_input_receiver_fn(
    feature_spec: Mapping[str, Any], default_batch_size: int | None = None
) -> Callable[[], ServingInputReceiver]:
    """Return a receiver function that parses serialized `tf.train.Example`s, from the input ``examples``.

    Args:
        feature_spec: Features such as `tf.io.FixedLenFeature`, by name.
        default_batch_size: Number of examples in a batch. None: any.
    """

    def serving_input_receiver_fn() -> ServingInputReceiver:
        import tensorflow as tf

        serialized = tf.compat.v1.placeholder(tf.string, [default_batch_size], "input_example_tensor")
        features = tf.io.parse_example(serialized, dict(feature_spec))
        return ServingInputReceiver(features, {"examples": serialized})

    return serving_input_receiver_fn


def build_raw_supervised_input_receiver_fn(
    features: Any, labels: Any, default_batch_size: int | None = None
) -> Callable[[], SupervisedInputReceiver]:
    """Return a receiver function that takes features and labels as they are, for exports of TRAIN and EVAL.

    Args:
        features: A template as in `build_raw_serving_input_receiver_fn`, or a dict of them. model_fn gets features of
            the same structure. The input of a single template is named ``input``.
        labels: The same for labels. The input of a single template is named ``label``.
        default_batch_size: Batch dimension. None: any.

    Raises:
        ValueError: Features and labels have keys in common, or one of them is None.
        TypeError: A value is not a tensor.
    """
    named_features = _by_name("features", features, _SINGLE_RECEIVER)
    named_labels = _by_name("labels", labels, _SINGLE_LABEL)
    overlap = sorted(named_features.keys() & named_labels.keys())
    if overlap:
        raise ValueError(
            f"Features and labels must have distinct keys. Found overlapping keys: {overlap}. Both are inputs of one "
            "signature: rename one of them."
        )
    feature_templates, label_templates = _templates("features", named_features), _templates("labels", named_labels)
    one_feature, one_label = not isinstance(features, Mapping), not isinstance(labels, Mapping)

    def supervised_input_receiver_fn() -> SupervisedInputReceiver:
        features = _placeholders(feature_templates, default_batch_size)
        labels = _placeholders(label_templates, default_batch_size)
        return SupervisedInputReceiver(
            features[_SINGLE_RECEIVER] if one_feature else features,
            labels[_SINGLE_LABEL] if one_label else labels,
            {**features, **labels},
        )

    return supervised_input_receiver_fn


def build_supervised_input_receiver_fn_from_input_fn(
    input_fn: Callable[..., Any], **input_fn_args: Any
) -> Callable[[], SupervisedInputReceiver]:
    """Return a receiver function whose inputs have the types of those of `input_fn`, for exports of TRAIN and EVAL.

    `input_fn` is called once, immediately, on the driver, in a new graph. No data is read.

    Args:
        input_fn: Function that returns a `tf.data.Dataset` of ``(features, labels)``, or ``(features, labels)``.
        **input_fn_args: Arguments for `input_fn`.

    Raises:
        ValueError: `input_fn` returns no labels, or as in `build_raw_supervised_input_receiver_fn`.
        TypeError: `input_fn` is not a function.
    """
    import tensorflow as tf

    if not callable(input_fn):
        raise TypeError(
            f"input_fn must be callable, got {input_fn!r}. For dataset_input_fn(...) describe the columns: "
            "build_raw_supervised_input_receiver_fn({name: tf.TensorSpec(...)}, ...)."
        )
    with tf.Graph().as_default():
        returned = input_fn(**input_fn_args)
        if isinstance(returned, tf.data.Dataset):
            returned = returned.element_spec
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise ValueError(f"input_fn should return (features, labels) as a len 2 tuple, got {returned!r}.")
        return build_raw_supervised_input_receiver_fn(*returned)


# Outputs


def __getattr__(name: str) -> Any:
    if name in _OUTPUTS:
        from ray_estimator._tf_private.saved_model import output_class

        return output_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_OUTPUTS})


# Tensors and their templates


def _is_tensor(value: Any) -> bool:
    import tensorflow as tf

    return bool(tf.is_tensor(value))


def _named(what: str, tensors: Any, single_name: str, *, int_keys: bool = False) -> dict[Any, Any]:
    if tensors is None:
        raise ValueError(f"{what}s must be defined.")
    named = dict(tensors) if isinstance(tensors, Mapping) else {single_name: tensors}
    for name, tensor in named.items():
        if not isinstance(name, str | int if int_keys else str):
            raise ValueError(f"{what} keys must be strings{' or ints' if int_keys else ''}, got {name!r}.")
        if not _is_tensor(tensor):
            raise ValueError(f"{what} {name!r} must be a Tensor, SparseTensor or RaggedTensor, got {tensor!r}.")
    return named


def _alternatives(alternatives: Any) -> dict[str, dict[str, Any]] | None:
    if alternatives is None:
        return None
    if not isinstance(alternatives, Mapping):
        raise ValueError(f"receiver_tensors_alternatives must be a dict, got {alternatives!r}.")
    return {
        name: _named("receiver_tensors_alternative", tensors, _SINGLE_RECEIVER)
        for name, tensors in alternatives.items()
    }


def _by_name(what: str, values: Any, single_name: str) -> Mapping[Any, Any]:
    if values is None:
        raise ValueError(f"{what} must be defined. Pass a Tensor, or a dict of Tensors, with their dtypes and shapes.")
    return values if isinstance(values, Mapping) else {single_name: values}


def _templates(what: str, values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the type of each value, with the name of its op if it has one. Types can be serialized, tensors cannot."""
    return {name: _template(f"{what}[{name!r}]", value) for name, value in values.items()}


def _template(what: str, value: Any) -> Any:
    import tensorflow as tf

    if isinstance(value, tf.TypeSpec):
        return value
    if isinstance(value, tf.Tensor):
        return tf.TensorSpec.from_tensor(value)  # keeps the name of its op
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{what} must be a Tensor, an array or a tf.TypeSpec, got {value!r}.")
    return tf.type_spec_from_value(value)


def _placeholders(templates: Mapping[Any, Any], batch_size: int | None) -> dict[Any, Any]:
    return {name: _placeholder(spec, batch_size) for name, spec in templates.items()}


def _placeholder(spec: Any, batch_size: int | None) -> Any:
    import tensorflow as tf

    v1 = tf.compat.v1
    if isinstance(spec, tf.RaggedTensorSpec):
        return v1.ragged.placeholder(spec.dtype, spec.ragged_rank, spec.shape[spec.ragged_rank + 1 :])
    shape = tf.TensorShape([batch_size]).concatenate(spec.shape[1:])
    if isinstance(spec, tf.SparseTensorSpec):
        return v1.sparse_placeholder(spec.dtype, None if shape.rank is None else shape)
    return v1.placeholder(spec.dtype, shape, getattr(spec, "name", None))
