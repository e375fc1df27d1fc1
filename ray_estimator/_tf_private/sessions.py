"""Private names of TensorFlow for sessions: hooks, event writers, evaluation, the global step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1
from tensorflow.python.training import evaluation, training_util
from tensorflow.python.util import deprecation


@contextlib.contextmanager
def without_deprecation_notices() -> Iterator[None]:
    """Hide TensorFlow's deprecation warnings about names that this package uses; users cannot act on them."""
    before = deprecation._PRINT_DEPRECATION_WARNINGS
    deprecation._PRINT_DEPRECATION_WARNINGS = False
    try:
        yield
    finally:
        deprecation._PRINT_DEPRECATION_WARNINGS = before


def postpone_stop(run_context: v1.train.SessionRunContext) -> None:
    """Cancel a hook's `request_stop`, so that the loop continues."""
    run_context._stop_requested = False


def awaited_step(hook: v1.train.SessionRunHook) -> int:
    """Return the global step that a `GlobalStepWaiterHook` waits for; 0 for other hooks."""
    return int(hook._wait_until_step) if isinstance(hook, v1.train.GlobalStepWaiterHook) else 0


def stop_step(hook: v1.train.StopAtStepHook, start_step: int) -> int:
    """Return the global step at which a `StopAtStepHook` stops a run that starts at `start_step`."""
    return int(hook._last_step) if hook._last_step is not None else start_step + int(hook._num_steps)


def attach_listeners(hook: v1.train.CheckpointSaverHook, listeners: Iterable[Any]) -> None:
    """Add listeners to a `CheckpointSaverHook`, except those that it already has."""
    attached = hook._listeners
    attached.extend(listener for listener in listeners if listener not in attached)


def global_step_read() -> tf.Tensor:
    """Return the tensor from which this worker's hooks read the global step. Call in a hook's `begin`."""
    return training_util._get_or_create_global_step_read()


@contextlib.contextmanager
def closing_event_writers() -> Iterator[None]:
    """On exit, close the event writers that hooks opened in the block. Writers that were open before stay open."""
    cache = v1.summary.FileWriterCache
    before = set(cache._cache)
    try:
        yield
    finally:
        for folder in set(cache._cache) - before:
            cache._cache.pop(folder).close()


def open_event_writer(folder: str) -> None:
    """Open the event writer that hooks use for `folder`, with the default graph and a unique file.

    By default TensorFlow names the file by the second, so a second run can overwrite the file of the first.
    """
    cache = v1.summary.FileWriterCache
    with cache._lock:
        if folder not in cache._cache:
            # Readers sort the files by name.
            suffix = f".{time.time_ns()}"
            cache._cache[folder] = v1.summary.FileWriter(folder, v1.get_default_graph(), filename_suffix=suffix)


def stop_after(num_evals: int) -> v1.train.SessionRunHook:
    """Return a hook that stops an evaluation after `num_evals` batches."""
    return evaluation._StopAfterNEvalsHook(num_evals, log_progress=False)


def create_eval_step() -> None:
    """Create the local variable that counts the batches of an evaluation, unless it exists."""
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
    """Run `eval_ops` until the input ends or a hook requests a stop, then return the value of `final_ops`."""
    return evaluation._evaluate_once(
        checkpoint_path=checkpoint_path,
        scaffold=scaffold,
        eval_ops=eval_ops,
        final_ops=final_ops,
        hooks=hooks,
        config=config,
    )


def add_global_step_read(global_step: tf.Variable) -> None:
    """Create the operation with which hooks read the global step now, so that it can be ordered before the step."""
    v1.add_to_collection(training_util.GLOBAL_STEP_READ_KEY, global_step.read_value() + 0)


def global_step_reads() -> list[tf.Operation]:
    """Return the operations with which hooks read the global step, in the default graph."""
    return [tensor.op for tensor in v1.get_collection(training_util.GLOBAL_STEP_READ_KEY)]
