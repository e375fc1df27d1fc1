"""Private names of TensorFlow around sessions: hooks, event writers, evaluation, the global step, v2 switches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1
from tensorflow.python.training import evaluation, training_util
from tensorflow.python.util import deprecation


@contextlib.contextmanager
def without_deprecation_notices() -> Iterator[None]:
    """TensorFlow says nothing of names that will go: those that are ours to use, no user can do anything about."""
    before = deprecation._PRINT_DEPRECATION_WARNINGS
    deprecation._PRINT_DEPRECATION_WARNINGS = False
    try:
        yield
    finally:
        deprecation._PRINT_DEPRECATION_WARNINGS = before


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


def read_global_step_plainly(global_step: tf.Variable) -> None:
    """Makes hooks read the global step here and now, so that the read can be put before the step."""
    v1.add_to_collection(training_util.GLOBAL_STEP_READ_KEY, global_step.read_value() + 0)


def global_step_reads() -> list[tf.Operation]:
    """What hooks read the global step with, in the default graph."""
    return [tensor.op for tensor in v1.get_collection(training_util.GLOBAL_STEP_READ_KEY)]


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
