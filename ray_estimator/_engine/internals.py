"""Every private name of TensorFlow and Keras that the engine leans on, each behind a function with a public meaning.

An upgrade that moves one of them shows in `tests/engine/test_internals.py`, one test for each. `strategy_internals` has
those of tf.distribute.
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1
from tensorflow.python.checkpoint import graph_view
from tensorflow.python.distribute import distribute_utils
from tensorflow.python.framework import config
from tensorflow.python.saved_model import constants
from tensorflow.python.saved_model.model_utils import export_utils
from tensorflow.python.training import evaluation, training_util
from tensorflow.python.util import deprecation, tf_export

# TensorFlow: what it says


@contextlib.contextmanager
def without_deprecation_notices() -> Iterator[None]:
    """TensorFlow says nothing of names that will go: those that are ours to use, no user can do anything about."""
    before = deprecation._PRINT_DEPRECATION_WARNINGS
    deprecation._PRINT_DEPRECATION_WARNINGS = False
    try:
        yield
    finally:
        deprecation._PRINT_DEPRECATION_WARNINGS = before


# TensorFlow: graphs and sessions


def run_after(op: tf.Operation, earlier: Iterable[tf.Operation]) -> None:
    """Adds control edges to an existing operation."""
    op._add_control_inputs([e for e in earlier if e is not op])


def in_v1_control_flow(op: tf.Operation) -> bool:
    """Whether `op` belongs to a v1 loop or branch: control edges may enter one where it begins, but none may leave."""
    return op._get_control_flow_context() is not None


def keep_shape(assign: tf.Operation) -> None:
    """Makes an assignment to a resource variable fail for a value of another shape; unhelped it changes the variable's.

    Call before any session has run the graph.
    """
    handle, value = assign.inputs
    if handle.op.type != "VarHandleOp":
        return
    with tf.device(value.device), tf.control_dependencies(None):
        assign._update_input(1, tf.ensure_shape(value, handle.op.get_attr("shape")))


def replace_input(op: tf.Operation, number: int, tensor: tf.Tensor) -> None:
    """Gives an existing operation another input. Call before any session has run the graph."""
    op._update_input(number, tensor)


def set_initializer(variable: tf.Variable, initializer: tf.Operation) -> None:
    """Makes `initializer` what initialises the variable."""
    variable._initializer_op = initializer


_WRITES = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "Assign", "AssignAdd", "CountUpTo"}


def writes_input(op: tf.Operation, number: int) -> bool:
    """Whether `op` assigns to the variable that its input `number` is, by itself or in a branch, loop or function."""
    return _writes(op.graph, op.node_def, len(op.inputs), number)


def _writes(graph: tf.Graph, node: Any, num_inputs: int, number: int) -> bool:
    if node.op in _WRITES:
        return number == 0
    names = [name for value in node.attr.values() for name in (value.func.name, *(f.name for f in value.list.func))]
    return any(_body_writes(graph, name, num_inputs, number) for name in names if name)


def _body_writes(graph: tf.Graph, name: str, num_inputs: int, number: int) -> bool:
    body = graph._get_function(name).cached_definition
    arguments = body.signature.input_arg
    # The predicate of a branch comes before what its bodies get.
    position = number - (num_inputs - len(arguments))
    if not 0 <= position < len(arguments):
        return False
    argument = arguments[position].name
    for node in body.node_def:
        inputs = [each for each in node.input if not each.startswith("^")]
        if any(each == argument and _writes(graph, node, len(inputs), n) for n, each in enumerate(inputs)):
            return True
    return False


def postpone_stop(run_context: v1.train.SessionRunContext) -> None:
    """Takes back a hook's `request_stop`, so that the loop goes on."""
    run_context._stop_requested = False


def awaited_step(hook: v1.train.SessionRunHook) -> int:
    """The global step that a `GlobalStepWaiterHook` waits for; 0 for other hooks."""
    return int(hook._wait_until_step) if isinstance(hook, v1.train.GlobalStepWaiterHook) else 0


def global_step_read() -> tf.Tensor:
    """What this worker's hooks fetch to know the global step before the step. Call in a hook's `begin`."""
    return training_util._get_or_create_global_step_read()


@contextlib.contextmanager
def closing_event_writers() -> Iterator[None]:
    """At its end closes the event writers that hooks opened within; those that were open before stay open."""
    cache = v1.summary.FileWriterCache
    before = set(cache._cache)
    try:
        yield
    finally:
        for folder in set(cache._cache) - before:
            cache._cache.pop(folder).close()


def open_event_writer(folder: str) -> None:
    """Opens the event writer that hooks will find for `folder`, with the default graph and a file that is its own.

    Unhelped TensorFlow names the file by the second, and a second run takes the place of the first.
    """
    cache = v1.summary.FileWriterCache
    with cache._lock:
        if folder not in cache._cache:
            # Readers take the files in the order of their names.
            suffix = f".{time.time_ns()}"
            cache._cache[folder] = v1.summary.FileWriter(folder, v1.get_default_graph(), filename_suffix=suffix)


def stop_after(num_evals: int) -> v1.train.SessionRunHook:
    """The hook that ends an evaluation after so many batches."""
    return evaluation._StopAfterNEvalsHook(num_evals, log_progress=False)


def ops_are_deterministic() -> bool:
    """Whether `tf.config.experimental.enable_op_determinism` was called, which allows no clock in a graph."""
    return bool(config.is_op_determinism_enabled())


def create_eval_step() -> None:
    """Creates the local variable that counts the batches of an evaluation, if it is not there yet."""
    evaluation._get_or_create_eval_step()


def evaluate_once(
    *,
    checkpoint_path: str | None,
    scaffold: v1.train.Scaffold,
    eval_ops: Any,
    final_ops: Any,
    hooks: Sequence[v1.train.SessionRunHook],
    config: v1.ConfigProto,
) -> Any:
    """Runs `eval_ops` until the input ends or a hook stops, then gives the value of `final_ops`."""
    return evaluation._evaluate_once(
        checkpoint_path=checkpoint_path,
        scaffold=scaffold,
        eval_ops=eval_ops,
        final_ops=final_ops,
        hooks=hooks,
        config=config,
    )


def export_outputs(
    mode: str, *, served: Mapping[str, Any] | None, predictions: Any, loss: Any, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """The ExportOutputs of a mode by signature name: in PREDICT those that are `served`, else one of all the rest."""
    outputs = export_utils.export_outputs_for_mode(
        mode=mode, serving_export_outputs=served, predictions=predictions, loss=loss, metrics=metrics
    )
    return dict(outputs)


def signature_defs(receiver: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """SignatureDefs by name, alternatives of the receiver included.

    One that needs what the receiver does not feed, or whose inputs do not fit its kind, is logged and left out.
    """
    signatures = export_utils.build_all_signature_defs(
        receiver.receiver_tensors, outputs, getattr(receiver, "receiver_tensors_alternatives", None), serving_only=False
    )
    return dict(signatures)


def keep_train_op(train_op: tf.Operation) -> None:
    """Puts `train_op` where loaders of a SavedModel look for it."""
    v1.add_to_collection(constants.TRAIN_OP_KEY, train_op)


def saver_of_objects(checkpoint: tf.train.Checkpoint) -> v1.train.Saver:
    """The saver that a Scaffold makes of a `tf.train.Checkpoint`."""
    return v1.train.Saver(graph_view.ObjectGraphView(checkpoint).frozen_saveable_objects(), sharded=True)


# TensorFlow: tf.data iterators


def resource_of(iterator: Any) -> tf.Tensor:
    """The handle of an initializable iterator."""
    return iterator._iterator_resource


def fingerprint_of(dataset: tf.data.Dataset) -> tf.Tensor:
    """uint64 scalar that tells a pipeline, with the constants in it, from another one; the same in each process.

    It takes a second for about 30 MB of constants.
    """
    return tf.raw_ops.DatasetFingerprint(input_dataset=dataset._variant_tensor)


def save_state(iterator: tf.Tensor, prefix: tf.Tensor) -> tf.Operation:
    """Writes where an iterator is as a checkpoint. Running it fails for pipelines that have state elsewhere."""
    fail = 2  # EXTERNAL_STATE_POLICY: IGNORE is 1, WARN 0
    # Into a file and not a string, in which TensorFlow dies of more than 2 GiB.
    state = tf.raw_ops.SerializeIterator(resource_handle=iterator, external_state_policy=fail)
    return tf.raw_ops.SaveV2(prefix=prefix, tensor_names=["iterator"], shape_and_slices=[""], tensors=[state])


def restore_state(iterator: tf.Tensor, prefix: tf.Tensor) -> tf.Operation:
    """Puts an iterator that is initialised where `save_state` found it."""
    state = tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=["iterator"], shape_and_slices=[""], dtypes=[tf.variant])
    return tf.raw_ops.DeserializeIterator(resource_handle=iterator, serialized=state[0])


def text_of(error: tf.errors.OpError) -> str:
    """What a kernel says, without the traceback and the graph around it."""
    message = re.sub(r"(?s)^Graph execution error:.*\nNode: [^\n]*\n", "", error.message)
    return re.sub(r"\n?\t? \[\[.*", "", message).strip()


# TensorFlow: the global step, losses, switches


def read_global_step_plainly(global_step: tf.Variable) -> None:
    """Makes hooks read the global step here and now, so that the read can be put before the step."""
    v1.add_to_collection(training_util.GLOBAL_STEP_READ_KEY, global_step.read_value() + 0)


def global_step_reads() -> list[tf.Operation]:
    """What hooks read the global step with, in the default graph."""
    return [tensor.op for tensor in v1.get_collection(training_util.GLOBAL_STEP_READ_KEY)]


def losses_are_summed() -> bool:
    """Whether the model built its last loss with `Reduction.SUM`. Call in the replica, after model_fn."""
    return bool(distribute_utils.get_loss_reduction() == tf.distribute.ReduceOp.SUM)


def replay_v2_switches(switches: Any) -> None:
    """Turns off in this process what the driver's script turned off. Call after the strategy exists.

    Args:
        switches: The `V2Switches` that were recorded with the user's code, or None.
    """
    if switches is None:
        return
    if switches.resource_variables is False:
        v1.disable_resource_variables()
    if switches.control_flow is False:
        v1.disable_control_flow_v2()
    if switches.tensor_shape is False:
        v1.disable_v2_tensorshape()
    if switches.tensor_equality is False:
        v1.disable_tensor_equality()


# Keras 3


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


# TensorFlow: names


def public_name_of(symbol: Any) -> str | None:
    """The name below ``tf.`` by which everybody may use a function or class of TensorFlow; None if there is none."""
    name: str | None = tf_export.get_canonical_name_for_symbol(symbol, add_prefix_to_v1_names=True)
    return name
