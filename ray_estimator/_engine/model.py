"""Call model_fn in a graph and prepare its spec to run: one loss, one train_op, metrics as tuples."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import logging
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine.distribution.strategy import Distribution
from ray_estimator._engine.graph.keras import KerasState, writes_of
from ray_estimator._engine.graph.operations import (
    assigns_to_input,
    initializers_of,
    replica_variables,
    variable_input_name,
)
from ray_estimator._jobs.jobs import ModelJob, UserCode
from ray_estimator._process import legacy_keras
from ray_estimator._tf_private.graphs import losses_are_summed
from ray_estimator._tf_private.keras import is_keras_variable, keras_3, seeding_keras
from ray_estimator._tf_private.keras_settings import apply_keras_settings
from ray_estimator._tf_private.switches import replay_v2_switches
from ray_estimator._validation import user_functions
from ray_estimator.spec import ModeKeys

logger = logging.getLogger(__name__)


@dataclass
class Model:
    """The model that model_fn built.

    Attributes:
        spec: The EstimatorSpec that model_fn returned.
        loss: Scalar loss of this replica; None in PREDICT.
        train_op: All operations of a training step; None outside TRAIN.
        loss_is_summed: Whether the reported loss is the sum of the replicas' losses; otherwise it is their mean.
        metrics: (value, update_op) by name, in EVAL.
        keras_writes: Operations that write Keras variables, in order.
    """

    spec: Any
    loss: tf.Tensor | None = None
    train_op: tf.Operation | None = None
    loss_is_summed: bool = False
    metrics: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    keras_writes: list[tf.Operation] = field(default_factory=list)


def open_user_code(job: ModelJob) -> UserCode:
    """Apply the driver's v2 switches and deserialize the user's code. Call after the strategy is created."""
    replay_v2_switches(job.code.v2_switches)
    return job.open_code()


def begin_graph(job: ModelJob) -> tf.Variable:
    """Set the seed and create the global step of the default graph, before any user code."""
    v1.set_random_seed(job.config.tf_random_seed)
    return v1.train.create_global_step()


def call_model_fn(
    job: ModelJob, code: UserCode, features: Any, labels: Any, mode: str, distribution: Distribution
) -> Model:
    """Build the model of `mode` in the default graph, as this process's replica."""

    def build() -> Model:
        apply_keras_settings(code.keras_settings)
        with seeding_keras(job.config.tf_random_seed):
            return _build(job, code, features, labels, mode)

    # A replica runs in its own thread, which does not inherit the caller's context.
    context = contextvars.copy_context()
    return distribution.run_replica(lambda: context.run(build))


def _build(job: ModelJob, code: UserCode, features: Any, labels: Any, mode: str) -> Model:
    keras_state = KerasState()
    with keras_state.recording(), _explaining_keras_2_errors():
        spec = user_functions.call_model_fn(
            code.model_fn,
            features=features,
            labels=labels,
            mode=mode,
            params=copy.deepcopy(code.params or {}),
            config=job.user_config,
            model_dir=job.model_dir,
        )
    writes = keras_state.order()
    if mode == ModeKeys.TRAIN:
        train_op = _train_op(spec.train_op, writes)
        return Model(spec, spec.loss, train_op, losses_are_summed(), keras_writes=writes)
    if mode == ModeKeys.EVAL:
        metrics = spec.eval_metric_ops or {}
        _require_free_names(metrics)
        return Model(spec, spec.loss, metrics=metric_tuples(metrics, writes), keras_writes=writes)
    return Model(spec)


@contextlib.contextmanager
def _explaining_keras_2_errors() -> Iterator[None]:
    """Add a note to errors that tensorflow-estimator raises because it is written for Keras 2."""
    try:
        yield
    except (AttributeError, ImportError, TypeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if keras_3() is not None and any("tensorflow_estimator" in frame.filename for frame in frames):
            error.add_note(
                "The heads and canned estimators of tensorflow-estimator need Keras 2, but this process uses Keras 3. "
                f"Use RunConfig(legacy_keras=True); with num_workers=0 also set {legacy_keras.NAME}=1 before "
                "TensorFlow is imported."
            )
        raise


def _train_op(returned: Any, keras_writes: list[tf.Operation]) -> tf.Operation:
    run = [] if is_keras_variable(returned) else [_operation(returned)]
    writes_step = any(writes_global_step(op) for op in v1.get_default_graph().get_operations())
    train_op = tf.group(*run, *keras_writes)
    if writes_step:
        return train_op
    # Keras 3 optimizers do not increment v1's global step; without it training would never end.
    with tf.control_dependencies([train_op]):
        return tf.group(train_op, v1.assign_add(v1.train.get_global_step(), 1))


def _operation(returned: Any) -> tf.Operation:
    if isinstance(returned, tf.Operation):
        return returned
    return returned.op if hasattr(returned, "op") else tf.convert_to_tensor(returned).op


def writes_global_step(op: tf.Operation) -> bool:
    """Return whether `op`, of the default graph, assigns to the global step. Its initializer does not count."""
    step = v1.train.get_global_step()
    names = {variable_input_name(variable) for variable in replica_variables(step)}
    positions = [number for number, tensor in enumerate(op.inputs) if tensor.name in names]
    if not positions or op in set(initializers_of(step)):
        return False
    return any(assigns_to_input(op, number) for number in positions)


def _require_free_names(metrics: Mapping[str, Any]) -> None:
    for name in metrics:
        if name in {"loss", v1.GraphKeys.GLOBAL_STEP}:
            raise ValueError(
                f'Metric with name "{name}" is not allowed, because Estimator already defines a default metric with '
                "the same name."
            )


def metric_tuples(metrics: Mapping[str, Any], keras_writes: list[tf.Operation]) -> dict[str, tuple[Any, Any]]:
    """Return a spec's metrics, including Keras metrics, as (value, update_op) by name. Call once per graph."""
    return {
        name: metric if isinstance(metric, tuple) else _keras_metric(metric, keras_writes)
        for name, metric in metrics.items()
    }


def _keras_metric(metric: Any, keras_writes: list[tf.Operation]) -> tuple[Any, tf.Operation]:
    """Return a Keras metric as (value, update_op). Its variables become metric variables, which are never restored."""
    variables = [variable.value if is_keras_variable(variable) else variable for variable in metric.variables]
    updates = writes_of(variables, keras_writes) or list(getattr(metric, "updates", ()))
    if not updates:
        raise ValueError(
            f'Please call update_state(...) on the "{metric.name}" metric in model_fn before you return it.'
        )
    for key in (v1.GraphKeys.GLOBAL_VARIABLES, v1.GraphKeys.LOCAL_VARIABLES, v1.GraphKeys.METRIC_VARIABLES):
        collection = v1.get_collection_ref(key)
        collection[:] = [kept for kept in collection if all(kept is not variable for variable in variables)]
        if key != v1.GraphKeys.GLOBAL_VARIABLES:
            collection.extend(variables)
    return metric.result(), tf.group(*updates)


def scaffold_of(spec: Any) -> v1.train.Scaffold:
    """Return the spec's Scaffold, or a new one."""
    return getattr(spec, "scaffold", None) or v1.train.Scaffold()
