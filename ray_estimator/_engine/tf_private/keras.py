"""Private names of Keras 3, each behind a function with a public meaning."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine.tf_private.graphs import losses_are_summed


def keras_3() -> Any:
    """The `keras` package if this process uses it, else None (legacy Keras, or none at all)."""
    keras = sys.modules.get("keras")
    return keras if keras is not None and hasattr(keras, "src") else None


def apply_keras_settings(settings: Mapping[str, Any]) -> None:
    """Sets in the calling thread what the driver's thread had set in Keras."""
    if keras_3() is None:
        return
    from keras.src.backend.common import global_state

    for name, value in settings.items():
        global_state.set_global_attribute(name, value)


@contextlib.contextmanager
def seeding_keras(seed: int | None) -> Iterator[None]:
    """Within it, layers and initializers without a seed draw theirs from `seed`: Keras asks Python's `random`."""
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
    """Within it, Keras 3 optimizers average gradients over replicas, as v1 optimizers do; alone they sum them."""
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
    """Within it, in this thread, Keras names variables for a graph, and refuses what a graph would leave undone.

    Every scope of a layer has the layer's name, however often it is entered. TensorFlow would number them: the second
    call of a layer takes the name that a later layer's variables would have had, and a mode that makes that call has
    other variable names than one that does not.

    Optimizers raise a ValueError where their updates would hang on a condition: they would never run.
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
    """Once in a process; without effect in threads that do not ask for it."""
    from keras.src.backend.tensorflow.core import name_scope
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    enter, apply = name_scope.__enter__, BaseOptimizer.apply

    @functools.wraps(enter)
    def enter_again(self: Any) -> Any:
        if getattr(_thread, "builds_graph", False):
            outer = v1.get_default_graph().get_name_scope()
            # With a slash at its end TensorFlow takes the scope's name as it is.
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
    for name in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
        if getattr(optimizer, name):
            raise ValueError(
                f"Keras optimizers in a graph expect {name}=None, but {optimizer.name} has {getattr(optimizer, name)}: "
                "Keras compares its count in Python there, and would never act. Use a larger batch_size or a "
                "tf.compat.v1 optimizer."
            )
    # A tf.function orders and runs its writes; branches and loops of a graph do not.
    if graph.building_function and not graph._add_control_dependencies:
        raise ValueError(
            f"Keras optimizers in a graph expect to be applied outside tf.cond and tf.while_loop, but {optimizer.name} "
            "is applied within one (LossScaleOptimizer does so): its updates would never run. Apply it "
            "unconditionally, use mixed_bfloat16, which needs no loss scale, or use a tf.compat.v1 optimizer."
        )


def created_by_keras(depth: int = 16) -> bool:
    """Whether the call stack above (at most `depth` frames) passes through Keras 3's variable class."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(depth):
        if frame is None:
            return False
        if frame.f_globals.get("__name__", "").startswith("keras.src.backend."):
            return True
        frame = frame.f_back
    return False


def is_keras_variable(value: Any) -> bool:
    """Whether `value` is a Keras 3 variable, such as `apply_gradients` returns."""
    keras = keras_3()
    return keras is not None and isinstance(value, keras.Variable)
