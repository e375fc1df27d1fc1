"""What an export needs: receivers of serving inputs, their builders, and the kinds of export outputs.

Importing this module imports no TensorFlow; using it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_SINGLE_FEATURE = "feature"
_SINGLE_RECEIVER = "input"
_OUTPUTS = ("ClassificationOutput", "ExportOutput", "PredictOutput", "RegressionOutput")


class _Receiver(NamedTuple):
    features: Any
    receiver_tensors: Mapping[str, Any]
    receiver_tensors_alternatives: Mapping[str, Mapping[str, Any]] | None


class ServingInputReceiver(_Receiver):
    """The inputs of an exported model, as a serving_input_receiver_fn returns them.

    Args:
        features: What model_fn gets: a dict of Tensors by name, or one Tensor, which becomes ``{"feature": tensor}``.
        receiver_tensors: What the signature takes: a dict of Tensors by name, or one, which becomes
            ``{"input": tensor}``.
        receiver_tensors_alternatives: Further sets of inputs by name, each a dict or one Tensor; each gives further
            signatures.

    Raises:
        ValueError: Something is None, no Tensor, or not named by strings.
    """

    __slots__ = ()

    def __new__(
        cls, features: Any, receiver_tensors: Any, receiver_tensors_alternatives: Any = None
    ) -> ServingInputReceiver:
        """Check and name the tensors; see the class."""
        return super().__new__(
            cls,
            features=_named("feature", features, _SINGLE_FEATURE),
            receiver_tensors=_named("receiver_tensor", receiver_tensors, _SINGLE_RECEIVER),
            receiver_tensors_alternatives=_alternatives(receiver_tensors_alternatives),
        )


class TensorServingInputReceiver(_Receiver):
    """As `ServingInputReceiver`, for a model_fn whose features are one Tensor: it gets that very Tensor."""

    __slots__ = ()

    def __new__(
        cls, features: Any, receiver_tensors: Any, receiver_tensors_alternatives: Any = None
    ) -> TensorServingInputReceiver:
        """Check and name the receiver's tensors; see the class."""
        if isinstance(features, Mapping) or not _is_tensor(features):
            raise ValueError(f"feature must be one Tensor, given: {features!r}. For a dict use ServingInputReceiver.")
        return super().__new__(
            cls,
            features=features,
            receiver_tensors=_named("receiver_tensor", receiver_tensors, _SINGLE_RECEIVER),
            receiver_tensors_alternatives=_alternatives(receiver_tensors_alternatives),
        )


def build_raw_serving_input_receiver_fn(
    features: Mapping[str, Any], default_batch_size: int | None = None
) -> Callable[[], ServingInputReceiver]:
    """A receiver function that takes features as they are.

    Args:
        features: By name, Tensors or `tf.TensorSpec`s whose dtype and shape the inputs have; the first dimension is
            the batch.
        default_batch_size: The batch dimension; None for any.
    """

    def serving_input_receiver_fn() -> ServingInputReceiver:
        import tensorflow as tf

        placeholders = {
            name: tf.compat.v1.placeholder(
                value.dtype, [default_batch_size, *value.shape.as_list()[1:]], _op_name(value, name)
            )
            for name, value in features.items()
        }
        return ServingInputReceiver(placeholders, placeholders)

    return serving_input_receiver_fn


def build_parsing_serving_input_receiver_fn(
    feature_spec: Mapping[str, Any], default_batch_size: int | None = None
) -> Callable[[], ServingInputReceiver]:
    """A receiver function that takes serialized `tf.train.Example`s, as input ``examples``, and parses them.

    Args:
        feature_spec: By name, `tf.io.FixedLenFeature`s and the like.
        default_batch_size: How many examples come at once; None for any number.
    """

    def serving_input_receiver_fn() -> ServingInputReceiver:
        import tensorflow as tf

        serialized = tf.compat.v1.placeholder(tf.string, [default_batch_size], "input_example_tensor")
        features = tf.io.parse_example(serialized, dict(feature_spec))
        return ServingInputReceiver(features, {"examples": serialized})

    return serving_input_receiver_fn


def __getattr__(name: str) -> Any:
    if name in _OUTPUTS:
        from tensorflow.python.saved_model.model_utils import export_output

        return getattr(export_output, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _op_name(value: Any, name: str) -> str:
    import tensorflow as tf

    return value.op.name if isinstance(value, tf.Tensor) and hasattr(value, "graph") else name


def _is_tensor(value: Any) -> bool:
    import tensorflow as tf

    return bool(tf.is_tensor(value))


def _named(what: str, tensors: Any, single_name: str) -> dict[str, Any]:
    if tensors is None:
        raise ValueError(f"{what}s must be defined.")
    named = dict(tensors) if isinstance(tensors, Mapping) else {single_name: tensors}
    for name, tensor in named.items():
        if not isinstance(name, str) and not (what == "feature" and isinstance(name, int)):
            raise ValueError(f"{what} keys must be strings: {name!r}.")
        if not _is_tensor(tensor):
            raise ValueError(f"{what} {name!r} must be a Tensor, SparseTensor or RaggedTensor, given: {tensor!r}.")
    return named


def _alternatives(alternatives: Any) -> dict[str, dict[str, Any]] | None:
    if alternatives is None:
        return None
    if not isinstance(alternatives, Mapping):
        raise ValueError(f"receiver_tensors_alternatives must be a dict: {alternatives!r}.")
    return {name: _named("receiver_tensor", tensors, _SINGLE_RECEIVER) for name, tensors in alternatives.items()}
