"""Executes Ray Datasets in order, in a thread, so that waits for blocks have a timeout."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Iterator
from typing import Any

from ray.data import Dataset

from ray_estimator._runtime import ray_private
from ray_estimator._runtime.data.prefetch import Prefetcher
from ray_estimator._runtime.logs import without_execution_notices
from ray_estimator.errors import InputTimeoutError

_BUNDLES = 3
_ExecutionCallback: Any = ray_private.execution_callback()


def in_order(dataset: Dataset) -> Dataset:
    """Return a copy of the dataset that produces its blocks in order, without progress bars."""
    ordered: Dataset = ray_private.copied(dataset)
    # By default, Ray Data yields blocks as they finish, in a different order each time.
    ordered.context.execution_options.preserve_order = True
    ordered.context.enable_progress_bars = False
    ordered.context.print_on_execution_start = False
    # Ray Data's own timeout mistakes a slow consumer, or one that saves a checkpoint, for a hanging execution.
    ordered.context.execution_no_progress_timeout_s = -1
    return ordered


def bundles_in_order(dataset: Dataset, timeout_secs: float | None) -> Iterator[Any]:
    """Yield bundles of references to the dataset's blocks, and prefetch some. Closing it ends the execution.

    A dataset in memory is not executed.

    Raises:
        InputTimeoutError: No block arrived within `timeout_secs`. Names the unfinished operators.
    """
    in_memory = ray_private.blocks_in_memory(dataset)
    if in_memory is not None:
        yield from in_memory
        return
    with without_execution_notices(), _Execution(in_order(dataset), timeout_secs) as bundles:
        yield from bundles


class _Execution(Prefetcher[Any]):
    """An execution of a dataset."""

    def __init__(self, dataset: Dataset, timeout_secs: float | None) -> None:
        ray_private.add_execution_callback(dataset, _ExecutorCallback)
        super().__init__(dataset.iter_internal_ref_bundles, _BUNDLES, timeout_secs)
        self.executor: Any = None

    def cancel(self) -> None:
        """End the execution, even if it hangs, and free the prefetched blocks."""
        is_early = self.is_alive()
        super().cancel()
        if is_early:
            self.executor = None
            gc.collect()  # Ray Data's operators are cyclic garbage, and refer to blocks.

    def timeout_error(self) -> Exception:
        """Return an error that names the unfinished operators."""
        unfinished = ray_private.unfinished_operators(self.executor) if self.executor else []
        names = "".join(f" ({name}: {num_tasks} tasks active)" for name, num_tasks in unfinished)
        return InputTimeoutError(f"Ray Data{names}", self._timeout_secs or 0.0)


class _ExecutorCallback(_ExecutionCallback):
    """Passes an `_Execution` its executor. At module level, since Ray Data serializes the context for its tasks."""

    def before_execution_starts(self, executor: Any) -> None:
        thread = threading.current_thread()
        if isinstance(thread, _Execution):
            thread.executor = executor
            thread.interrupt_with(functools.partial(executor.shutdown, force=True))
