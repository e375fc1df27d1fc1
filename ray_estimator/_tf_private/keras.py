"""Private names of Keras 3: seeds, gradients, names in a graph, variables."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._tf_private.graphs import losses_are_summed
from ray_estimator._tf_private.keras_settings import OPTIMIZER_ARGUMENTS_WITHOUT_EFFECT


def keras_3() -> Any:
    """Return the `keras` package if this process uses Keras 3; None with legacy Keras or without Keras."""
    keras = sys.modules.get("keras")
    return keras if keras is not None and hasattr(keras, "src") else None


@contextlib.contextmanager
def seeding_keras(seed: int | None) -> Iterator[None]:
    """Derive the seeds of layers and initializers without one from `seed`. Keras takes them from Python's `random`."""
    if seed is None or keras_3() is None:
        yield
        return
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def averaging_keras_gradients(num_replicas: int) -> Iterator[None]:
    """Make Keras 3 optimizers average gradients over replicas, as v1 optimizers do. By default they sum them."""
    if keras_3() is None or num_replicas == 1:
        yield
        return
    from keras.src.backend.tensorflow.optimizer import TFOptimizer

    summing = TFOptimizer._all_reduce_sum_gradients

    def averaging(self: Any, grads_and_vars: Any) -> Any:
        scale = 1.0 if losses_are_summed() else 1.0 / num_replicas
        return summing(self, [(_scaled(grad, scale), variable) for grad, variable in grads_and_vars])

    TFOptimizer._all_reduce_sum_gradients = averaging
    try:
        yield
    finally:
        TFOptimizer._all_reduce_sum_gradients = summing


def _scaled(grad: Any, scale: float) -> Any:
    if grad is None or scale == 1.0:
        return grad
    if isinstance(grad, tf.IndexedSlices):
        return tf.IndexedSlices(grad.values * tf.cast(scale, grad.dtype), grad.indices, grad.dense_shape)
    return grad * tf.cast(scale, grad.dtype)


_thread = threading.local()


@contextlib.contextmanager
def keras_in_graph() -> Iterator[None]:
    """Give Keras variables stable names in this thread's graphs, and reject optimizer updates that would never run.

    A layer's name scope keeps the layer's name each time it is entered. TensorFlow would number the scopes: the second
    call of a layer would take the name of a later layer's variables, and variable names would depend on the mode.

    Optimizers raise a ValueError if their updates are conditional, because such updates never run in a graph.
    """
    if keras_3() is None:
        yield
        return
    _patch_keras_for_graphs()
    _thread.builds_graph = True
    try:
        yield
    finally:
        _thread.builds_graph = False


@functools.cache
def _patch_keras_for_graphs() -> None:
    """Patch Keras once per process. The patches have no effect in threads outside `keras_in_graph`."""
    from keras.src.backend.tensorflow.core import name_scope
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    enter, apply = name_scope.__enter__, BaseOptimizer.apply

    @functools.wraps(enter)
    def enter_again(self: Any) -> Any:
        if getattr(_thread, "builds_graph", False):
            outer = v1.get_default_graph().get_name_scope()
            # TensorFlow does not number a scope whose name ends with a slash.
            self._tf_name_scope = tf.name_scope(f"{outer}/{self.name}/" if outer else f"{self.name}/")
        return enter(self)

    @functools.wraps(apply)
    def apply_if_it_runs(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(_thread, "builds_graph", False):
            _require_unconditional(self)
        return apply(self, *args, **kwargs)

    name_scope.__enter__, BaseOptimizer.apply = enter_again, apply_if_it_runs


def _require_unconditional(optimizer: Any) -> None:
    graph = v1.get_default_graph()
    for name in OPTIMIZER_ARGUMENTS_WITHOUT_EFFECT:
        if getattr(optimizer, name):
            raise ValueError(
                f"{name} of a Keras optimizer in a graph must be None, got {getattr(optimizer, name)} for "
                f"{optimizer.name}: Keras checks it in Python only while the graph is built. Use a larger batch_size "
                "or a tf.compat.v1 optimizer."
            )
    # A tf.function adds control dependencies that run its writes in order; branches and loops of a graph do not.
    if graph.building_function and not graph._add_control_dependencies:
        raise ValueError(
            f"Keras optimizers in a graph cannot be applied inside tf.cond or tf.while_loop, where their updates never "
            f"run, got {optimizer.name} (LossScaleOptimizer uses tf.cond). Apply it unconditionally, use "
            "mixed_bfloat16, which needs no loss scaling, or use a tf.compat.v1 optimizer."
        )


def created_by_keras(depth: int = 16) -> bool:
    """Return whether the nearest `depth` frames of the call stack include Keras 3's backend."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(depth):
        if frame is None:
            return False
        if frame.f_globals.get("__name__", "").startswith("keras.src.backend."):
            return True
        frame = frame.f_back
    return False


def is_keras_variable(value: Any) -> bool:
    """Return whether `value` is a Keras 3 variable, such as `apply_gradients` returns."""
    keras = keras_3()
    return keras is not None and isinstance(value, keras.Variable)
