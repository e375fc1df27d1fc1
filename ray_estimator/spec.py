"""What a model_fn is asked for, and what it returns: `ModeKeys` and `EstimatorSpec`.

Importing this module imports no TensorFlow; making an `EstimatorSpec` does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_DEFAULT_SIGNATURE = "serving_default"


class ModeKeys:
    """The modes in which a model_fn is called.

    Attributes:
        TRAIN: One step computes the loss and runs `train_op`.
        EVAL: One step computes the loss and updates the metrics.
        PREDICT: One step computes the predictions; there are no labels. Also the mode of an export.
    """

    TRAIN = "train"
    EVAL = "eval"
    PREDICT = "infer"


READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp"})
"""Types of operations that only read a variable: a copy of `_engine.graph.operations.READS`, which lies above."""

_MODES = (ModeKeys.TRAIN, ModeKeys.EVAL, ModeKeys.PREDICT)


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
    """The ops of one model in one mode, as model_fn returns them. Made where model_fn runs, in its graph.

    TRAIN needs `loss` and `train_op`, EVAL needs `loss`, PREDICT needs `predictions`. Fields that a mode
    does not need may be given all the same, so that one `return` can serve every mode.

    Args:
        mode: One of `ModeKeys`.
        predictions: A Tensor, or a dict of Tensors whose first dimension is the batch.
        loss: A scalar Tensor, or one of shape `[1]`, which becomes a scalar.
        train_op: What one step runs: an Operation, a Tensor, or a variable as `assign_add` or a Keras
            optimizer's `apply_gradients` returns it. A variable is replaced by its op.
        eval_metric_ops: A dict of `(value, update_op)` tuples, as `tf.compat.v1.metrics` returns them, or of
            Keras metrics on which `update_state(...)` has been called in this graph; those become tuples, and their
            variables metric variables, when model_fn has returned. A `value` may be a nested structure of Tensors.
        export_outputs: For PREDICT, a dict of signature names to
            `ExportOutput` objects, such as `export.PredictOutput`. Of several, one must be `'serving_default'`;
            a single one becomes that as well. Without any, the predictions are exported.
        training_chief_hooks: `SessionRunHook` instances that run on the chief only, in TRAIN.
        training_hooks: `SessionRunHook` instances that run on every worker, in TRAIN.
        scaffold: A `tf.compat.v1.train.Scaffold`; a default one if None.
        evaluation_hooks: `SessionRunHook` instances for EVAL.
        prediction_hooks: `SessionRunHook` instances for PREDICT.

    Raises:
        ValueError: `mode` is unknown, a field that the mode needs is missing, the loss is not a scalar, an op
            belongs to another graph, a Keras metric was never updated, or no export output is the default.
        TypeError: A field is of the wrong type.
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
        """Check every field and fill in the defaults; see the class."""
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {list(_MODES)} (see ModeKeys), given: {mode!r}.")
        _check_nothing_is_missing(mode, predictions, loss, train_op)
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
        """Return a spec with some fields changed, checked as a new one is.

        Raises:
            ValueError: The mode would change, or as the constructor raises it.
            TypeError: There is no such field, or as the constructor raises it.
        """
        if changes.get("mode", self.mode) != self.mode:
            raise ValueError(
                f"mode of EstimatorSpec cannot be changed: it is {self.mode!r}, given: {changes['mode']!r}. "
                "Make a new EstimatorSpec instead."
            )
        return EstimatorSpec(**{**self._asdict(), **changes})


def as_spec(returned: Any) -> EstimatorSpec:
    """Return what a model_fn returned as an `EstimatorSpec`: any object with the same fields will do, and is checked.

    Raises:
        ValueError: It is no spec, or as the constructor raises it.
        TypeError: As the constructor raises it.
    """
    if isinstance(returned, EstimatorSpec):
        return returned
    if not all(hasattr(returned, name) for name in ("mode", "predictions", "loss", "train_op", "eval_metric_ops")):
        raise ValueError(f"model_fn should return an EstimatorSpec. It returned {returned!r}.")
    fields: dict[str, Any] = {name: getattr(returned, name, None) for name in EstimatorSpec._fields}
    return EstimatorSpec(**fields)


def _check_nothing_is_missing(mode: str, predictions: Any, loss: Any, train_op: Any) -> None:
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
            raise TypeError(f"{name} must be Tensor, given: {value!r}.")
        _check_in_default_graph(name, value)
    return predictions


def _checked_loss(loss: Any) -> Any:
    import tensorflow as tf

    if loss is None:
        return None
    if not _is_tensor(loss) or isinstance(loss, tf.SparseTensor | tf.RaggedTensor):
        raise TypeError(f"loss must be Tensor, given: {loss!r}.")
    _check_in_default_graph("loss", loss)
    for part in _parts(loss):
        if part.shape.num_elements() not in (None, 1):
            raise ValueError(f"Loss must be scalar, given: {loss!r}. Take its mean, for example tf.reduce_mean(loss).")
    if isinstance(loss, tf.distribute.DistributedValues) or loss.shape.is_compatible_with([]):
        return loss
    return tf.reshape(loss, [])


def _checked_train_op(train_op: Any) -> Any:
    import tensorflow as tf

    if train_op is None:
        return None
    if not isinstance(train_op, tf.Operation) and not _is_tensor(train_op):
        raise TypeError(f"train_op must be Operation or Tensor, given: {train_op!r}.")
    _check_in_default_graph("train_op", train_op)
    return _op_of_variable(train_op)


def _op_of_variable(train_op: Any) -> Any:
    """Return the op behind a variable: its assignment, if an assignment returned the variable."""
    import tensorflow as tf

    variable = train_op.value if _is_keras_variable(train_op) else train_op
    if not isinstance(variable, tf.Variable):
        return variable
    op = variable.op
    # Across replicas a distributed variable has no single op; the session fetches the variable itself.
    return op if isinstance(op, tf.Operation) else variable


def _checked_metrics(metrics: Any) -> dict[str, Any]:
    if metrics is None:
        return {}
    if not isinstance(metrics, dict):
        raise TypeError(f"eval_metric_ops must be a dict of name to metric, given: {metrics!r}.")
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
            f"given: {metric!r} for key {name!r}."
        )
    for part in tf.nest.flatten(metric):
        if not isinstance(part, tf.Operation) and not _is_tensor(part):
            raise TypeError(f"eval_metric_ops[{name!r}] must be made of Tensors and Operations, given: {part!r}.")
        _check_in_default_graph(f"eval_metric_ops[{name!r}]", part)


def _check_keras_metric(name: str, metric: Any) -> None:
    for variable in metric.variables:
        _check_in_default_graph(f"eval_metric_ops[{name!r}]", variable)
    if not any(_is_written(part) for variable in metric.variables for part in _parts(variable)):
        raise ValueError(
            f'Please call update_state(...) on the "{name}" metric in model_fn: '
            f"nothing in this graph updates {metric!r}."
        )


def _is_written(variable: Any) -> bool:
    """Whether an op of the graph, other than its initializer, takes the variable to write to it."""
    return any(op is not variable.initializer and op.type not in READS for op in variable.handle.consumers())


def _checked_export_outputs(mode: str, outputs: Any, predictions: Any) -> dict[str, Any] | None:
    """Return the export outputs with a default among them; outside PREDICT they are not looked at."""
    if mode != ModeKeys.PREDICT:
        return outputs  # type: ignore[no-any-return]
    from ray_estimator._tf_private.saved_model import output_class

    if outputs is None:
        return {_DEFAULT_SIGNATURE: output_class("PredictOutput")(predictions)}
    if not isinstance(outputs, dict):
        raise TypeError(f"export_outputs must be a dict of name to ExportOutput, given: {outputs!r}.")
    for name, output in outputs.items():
        if not isinstance(output, output_class("ExportOutput")):
            raise TypeError(
                f"Values in export_outputs must be ExportOutput objects, given: {output!r} for key {name!r}. "
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
        raise TypeError(f"{field} must be a list of hooks, given one hook: {hooks!r}. Put it into a list.")
    listed = tuple(hooks)
    for hook in listed:
        if not isinstance(hook, SessionRunHook):
            raise TypeError(f"All hooks must be SessionRunHook instances, given in {field}: {hook!r}.")
    return listed


def _checked_scaffold(scaffold: Any) -> Any:
    from tensorflow.compat.v1.train import Scaffold

    if scaffold is None:
        return Scaffold()
    if not isinstance(scaffold, Scaffold):
        raise TypeError(f"scaffold must be tf.train.Scaffold, given: {scaffold!r}.")
    return scaffold


def _check_in_default_graph(name: str, value: Any) -> None:
    import tensorflow as tf

    here = tf.compat.v1.get_default_graph()
    if any(getattr(part, "graph", None) is not here for part in _parts(value)):
        raise ValueError(
            f'{name} with "{value!r}" must be from the default graph. Possible causes: it was made outside '
            "model_fn, or eagerly, or under another tf.Graph().as_default(). Make it in model_fn, which runs in a "
            "graph of its own each time."
        )


def _parts(value: Any) -> list[Any]:
    """Return the plain tensors, variables or ops behind a value: sparse, of Keras, or one for each replica."""
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
    # Keras is imported by whoever made the value; if it is not, the value is none of its.
    keras = sys.modules.get("keras")
    return hasattr(keras, "Variable") and isinstance(value, keras.Variable)  # type: ignore[union-attr]


def _is_keras_metric(value: Any) -> bool:
    loaded = [sys.modules.get(name) for name in ("keras", "tf_keras")]
    return any(hasattr(keras, "metrics") and isinstance(value, keras.metrics.Metric) for keras in loaded)  # type: ignore[union-attr]
