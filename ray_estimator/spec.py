"""The modes and the result of a model_fn: `ModeKeys` and `EstimatorSpec`.

Importing this module does not import TensorFlow. Creating an `EstimatorSpec` does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_DEFAULT_SIGNATURE = "serving_default"


class ModeKeys:
    """The modes of a model_fn.

    Attributes:
        TRAIN: One step computes the loss and runs `train_op`.
        EVAL: One step computes the loss and updates the metrics.
        PREDICT: One step computes the predictions, without labels. Also the mode of exports for serving.
    """

    TRAIN = "train"
    EVAL = "eval"
    PREDICT = "infer"


READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp"})
"""Types of operations that only read a variable: a copy of `_engine.graph.operations.READS`, which lies above."""

MODES = (ModeKeys.TRAIN, ModeKeys.EVAL, ModeKeys.PREDICT)
"""All modes, in the order of an export: the first one saves the variables, and TRAIN has all of them."""


class _Fields(NamedTuple):
    mode: str
    predictions: Any
    loss: Any
    train_op: Any
    eval_metric_ops: dict[str, Any]
    export_outputs: dict[str, Any] | None
    training_chief_hooks: tuple[Any, ...]
    training_hooks: tuple[Any, ...]
    scaffold: Any
    evaluation_hooks: tuple[Any, ...]
    prediction_hooks: tuple[Any, ...]


class EstimatorSpec(_Fields):
    """The ops of a model in one mode, as returned by model_fn. It is created in the graph of model_fn.

    TRAIN needs `loss` and `train_op`, EVAL needs `loss`, PREDICT needs `predictions`. Fields that a mode does not need
    may be set, so that model_fn can return the same fields in every mode.

    Args:
        mode: One of `ModeKeys`.
        predictions: A Tensor, or a dict of Tensors, with the batch as first dimension.
        loss: A Tensor, scalar or of shape `[1]`, which becomes a scalar.
        train_op: Op that one step runs: an Operation, a Tensor, or a variable as returned by `assign_add` or a Keras
            optimizer's `apply_gradients`. A variable is replaced by its op.
        eval_metric_ops: A dict of `(value, update_op)` tuples, as returned by `tf.compat.v1.metrics`, or of Keras
            metrics on which `update_state(...)` has been called in this graph. After model_fn these become tuples, and
            their variables metric variables. A `value` may be a nested structure of Tensors.
        export_outputs: For PREDICT, `ExportOutput` objects, such as `export.PredictOutput`, by signature name.
            One of several must be `'serving_default'`. A single one gets this name too. None: the predictions.
        training_chief_hooks: `SessionRunHook` instances that run on the chief only, in TRAIN.
        training_hooks: `SessionRunHook` instances that run on every worker, in TRAIN.
        scaffold: A `tf.compat.v1.train.Scaffold`. None: a default one.
        evaluation_hooks: `SessionRunHook` instances for EVAL.
        prediction_hooks: `SessionRunHook` instances for PREDICT.

    Raises:
        ValueError: `mode` is unknown, a field that the mode needs is missing, the loss is not a scalar, an op
            belongs to another graph, a Keras metric was never updated, or no export output is the default.
        TypeError: A field has the wrong type.
    """

    __slots__ = ()

    def __new__(
        cls,
        mode: str,
        predictions: Any = None,
        loss: Any = None,
        train_op: Any = None,
        eval_metric_ops: Mapping[str, Any] | None = None,
        export_outputs: Mapping[str, Any] | None = None,
        training_chief_hooks: Sequence[Any] | None = None,
        training_hooks: Sequence[Any] | None = None,
        scaffold: Any = None,
        evaluation_hooks: Sequence[Any] | None = None,
        prediction_hooks: Sequence[Any] | None = None,
    ) -> EstimatorSpec:
        """Check every field and set the defaults; see the class."""
        if mode not in MODES:
            raise ValueError(f"mode must be one of {list(MODES)} (see ModeKeys), got {mode!r}.")
        _check_required_fields(mode, predictions, loss, train_op)
        predictions = _checked_predictions(predictions)
        return super().__new__(
            cls,
            mode=mode,
            predictions=predictions,
            loss=_checked_loss(loss),
            train_op=_checked_train_op(train_op),
            eval_metric_ops=_checked_metrics(eval_metric_ops),
            export_outputs=_checked_export_outputs(mode, export_outputs, predictions),
            training_chief_hooks=_checked_hooks("training_chief_hooks", training_chief_hooks),
            training_hooks=_checked_hooks("training_hooks", training_hooks),
            scaffold=_checked_scaffold(scaffold),
            evaluation_hooks=_checked_hooks("evaluation_hooks", evaluation_hooks),
            prediction_hooks=_checked_hooks("prediction_hooks", prediction_hooks),
        )

    def _replace(self, **changes: Any) -> EstimatorSpec:
        """Return a copy with some fields changed and checked.

        Raises:
            ValueError: The mode would change, or as in the constructor.
            TypeError: There is no such field, or as in the constructor.
        """
        if changes.get("mode", self.mode) != self.mode:
            raise ValueError(
                f"mode of EstimatorSpec cannot be changed: it is {self.mode!r}, got {changes['mode']!r}. "
                "Create a new EstimatorSpec instead."
            )
        return EstimatorSpec(**{**self._asdict(), **changes})


def as_spec(returned: Any) -> EstimatorSpec:
    """Return an `EstimatorSpec` from the result of a model_fn, which may be any object with the same fields.

    Raises:
        ValueError: `returned` is not a spec, or as in the constructor.
        TypeError: As in the constructor.
    """
    if isinstance(returned, EstimatorSpec):
        return returned
    if not all(hasattr(returned, name) for name in ("mode", "predictions", "loss", "train_op", "eval_metric_ops")):
        raise ValueError(f"model_fn should return an EstimatorSpec, got {returned!r}.")
    fields: dict[str, Any] = {name: getattr(returned, name, None) for name in EstimatorSpec._fields}
    return EstimatorSpec(**fields)


def _check_required_fields(mode: str, predictions: Any, loss: Any, train_op: Any) -> None:
    if mode == ModeKeys.PREDICT:
        if predictions is None:
            raise ValueError("Missing predictions. In mode 'infer' return EstimatorSpec(mode, predictions=...).")
        return
    if loss is None:
        raise ValueError(f"Missing loss. In mode {mode!r} return EstimatorSpec(mode, loss=..., ...).")
    if mode == ModeKeys.TRAIN and train_op is None:
        raise ValueError("Missing train_op. In mode 'train' return EstimatorSpec(mode, loss=..., train_op=...).")


def _checked_predictions(predictions: Any) -> Any:
    if predictions is None:
        return {}
    named = predictions if isinstance(predictions, dict) else {"": predictions}
    for key, value in named.items():
        name = f"predictions[{key!r}]" if isinstance(predictions, dict) else "predictions"
        if not _is_tensor(value):
            raise TypeError(f"{name} must be Tensor, got {value!r}.")
        _check_in_default_graph(name, value)
    return predictions


def _checked_loss(loss: Any) -> Any:
    import tensorflow as tf

    if loss is None:
        return None
    if not _is_tensor(loss) or isinstance(loss, tf.SparseTensor | tf.RaggedTensor):
        raise TypeError(f"loss must be Tensor, got {loss!r}.")
    _check_in_default_graph("loss", loss)
    for part in _parts(loss):
        if part.shape.num_elements() not in (None, 1):
            raise ValueError(f"Loss must be scalar, got {loss!r}. Take its mean, for example tf.reduce_mean(loss).")
    if isinstance(loss, tf.distribute.DistributedValues) or loss.shape.is_compatible_with([]):
        return loss
    return tf.reshape(loss, [])


def _checked_train_op(train_op: Any) -> Any:
    import tensorflow as tf

    if train_op is None:
        return None
    if not isinstance(train_op, tf.Operation) and not _is_tensor(train_op):
        raise TypeError(f"train_op must be Operation or Tensor, got {train_op!r}.")
    _check_in_default_graph("train_op", train_op)
    return _op_of_variable(train_op)


def _op_of_variable(train_op: Any) -> Any:
    """Return the op behind a variable: its assignment, if an assignment returned the variable."""
    import tensorflow as tf

    variable = train_op.value if _is_keras_variable(train_op) else train_op
    if not isinstance(variable, tf.Variable):
        return variable
    op = variable.op
    # A distributed variable has no single op across replicas. The session fetches the variable itself.
    return op if isinstance(op, tf.Operation) else variable


def _checked_metrics(metrics: Any) -> dict[str, Any]:
    if metrics is None:
        return {}
    if not isinstance(metrics, dict):
        raise TypeError(f"eval_metric_ops must be a dict of name to metric, got {metrics!r}.")
    for name, metric in metrics.items():
        if _is_keras_metric(metric):
            _check_keras_metric(name, metric)
        else:
            _check_metric_tuple(name, metric)
    return dict(metrics)


def _check_metric_tuple(name: str, metric: Any) -> None:
    import tensorflow as tf

    if not isinstance(metric, tuple) or len(metric) != 2:
        raise TypeError(
            "Values of eval_metric_ops must be (metric_value, update_op) tuples or Keras metrics, "
            f"got {metric!r} for key {name!r}."
        )
    for part in tf.nest.flatten(metric):
        if not isinstance(part, tf.Operation) and not _is_tensor(part):
            raise TypeError(f"eval_metric_ops[{name!r}] must be made of Tensors and Operations, got {part!r}.")
        _check_in_default_graph(f"eval_metric_ops[{name!r}]", part)


def _check_keras_metric(name: str, metric: Any) -> None:
    for variable in metric.variables:
        _check_in_default_graph(f"eval_metric_ops[{name!r}]", variable)
    if not any(_is_updated(part) for variable in metric.variables for part in _parts(variable)):
        raise ValueError(
            f'Please call update_state(...) on the "{name}" metric in model_fn: no op in this graph updates {metric!r}.'
        )


def _is_updated(variable: Any) -> bool:
    """Whether an op of the graph, other than its initializer, writes to the variable."""
    return any(op is not variable.initializer and op.type not in READS for op in variable.handle.consumers())


def _checked_export_outputs(mode: str, outputs: Any, predictions: Any) -> dict[str, Any] | None:
    """Return the export outputs with a default signature. In other modes than PREDICT they are ignored."""
    if mode != ModeKeys.PREDICT:
        return outputs  # type: ignore[no-any-return]
    from ray_estimator._tf_private.saved_model import output_class

    if outputs is None:
        return {_DEFAULT_SIGNATURE: output_class("PredictOutput")(predictions)}
    if not isinstance(outputs, dict):
        raise TypeError(f"export_outputs must be a dict of name to ExportOutput, got {outputs!r}.")
    for name, output in outputs.items():
        if not isinstance(output, output_class("ExportOutput")):
            raise TypeError(
                f"Values in export_outputs must be ExportOutput objects, got {output!r} for key {name!r}. "
                "Wrap the tensors, for example in export.PredictOutput(...)."
            )
    return _with_default_signature(outputs)


def _with_default_signature(outputs: dict[str, Any]) -> dict[str, Any]:
    if _DEFAULT_SIGNATURE in outputs or not outputs:
        return dict(outputs)
    if len(outputs) == 1:
        (output,) = outputs.values()
        return {**outputs, _DEFAULT_SIGNATURE: output}
    raise ValueError(
        "Multiple `export_outputs` were provided, but none of them are specified as the default: give one of "
        f"{sorted(outputs)} the key {_DEFAULT_SIGNATURE!r} as well."
    )


def _checked_hooks(field: str, hooks: Sequence[Any] | None) -> tuple[Any, ...]:
    from tensorflow.compat.v1.train import SessionRunHook

    if hooks is None:
        return ()
    if isinstance(hooks, SessionRunHook):
        raise TypeError(f"{field} must be a list of hooks, got {hooks!r}. Put the hook in a list.")
    listed = tuple(hooks)
    for hook in listed:
        if not isinstance(hook, SessionRunHook):
            raise TypeError(f"All hooks must be SessionRunHook instances, got {hook!r} in {field}.")
    return listed


def _checked_scaffold(scaffold: Any) -> Any:
    from tensorflow.compat.v1.train import Scaffold

    if scaffold is None:
        return Scaffold()
    if not isinstance(scaffold, Scaffold):
        raise TypeError(f"scaffold must be tf.train.Scaffold, got {scaffold!r}.")
    return scaffold


def _check_in_default_graph(name: str, value: Any) -> None:
    import tensorflow as tf

    here = tf.compat.v1.get_default_graph()
    if any(getattr(part, "graph", None) is not here for part in _parts(value)):
        raise ValueError(
            f'{name} with "{value!r}" must be from the default graph. Possible causes: it was created outside '
            "model_fn, eagerly, or under another tf.Graph().as_default(). Create it in model_fn, which runs in a new "
            "graph each time."
        )


def _parts(value: Any) -> list[Any]:
    """Return the plain tensors, variables or ops of a value, which may be sparse, distributed or Keras's."""
    import tensorflow as tf

    if _is_keras_variable(value):
        value = value.value
    if isinstance(value, tf.distribute.DistributedValues):
        return list(value.values)
    if isinstance(value, tf.Variable):
        return [value]
    return list(tf.nest.flatten(value, expand_composites=True))


def _is_tensor(value: Any) -> bool:
    import tensorflow as tf

    return bool(tf.is_tensor(value)) or isinstance(value, tf.distribute.DistributedValues)


def _is_keras_variable(value: Any) -> bool:
    # If Keras is not imported, the value cannot be one of its variables.
    keras = sys.modules.get("keras")
    return hasattr(keras, "Variable") and isinstance(value, keras.Variable)  # type: ignore[union-attr]


def _is_keras_metric(value: Any) -> bool:
    loaded = [sys.modules.get(name) for name in ("keras", "tf_keras")]
    return any(hasattr(keras, "metrics") and isinstance(value, keras.metrics.Metric) for keras in loaded)  # type: ignore[union-attr]
