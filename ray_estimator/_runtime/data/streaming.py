"""What Ray Data makes, in its order, pulled by a thread of its own, so that a wait for it has a deadline."""

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
    """The dataset, so that what is read and made of it comes in its order, without progress bars."""
    ordered: Dataset = ray_private.copied(dataset)
    # Without it Ray Data hands out blocks as they finish: another order each time.
    ordered.context.execution_options.preserve_order = True
    ordered.context.enable_progress_bars = False
    ordered.context.print_on_execution_start = False
    # Ray Data's own guard takes a consumer that is slow, or saves a checkpoint, for an execution that hangs.
    ordered.context.execution_no_progress_timeout_s = -1
    return ordered


def bundles_in_order(dataset: Dataset, timeout_secs: float | None) -> Iterator[Any]:
    """References to the dataset's blocks, some bundles ahead. Leaving the iterator ends the execution.

    A dataset that is in memory has its blocks, and nothing is executed.

    Raises:
        InputTimeoutError: Nothing came within `timeout_secs`; names the operators that were not done.
    """
    in_memory = ray_private.blocks_in_memory(dataset)
    if in_memory is not None:
        yield from in_memory
        return
    with without_execution_notices(), _Execution(in_order(dataset), timeout_secs) as bundles:
        yield from bundles


class _Execution(Prefetcher[Any]):
    """One execution of a dataset."""

    def __init__(self, dataset: Dataset, timeout_secs: float | None) -> None:
        ray_private.add_execution_callback(dataset, _TellThread)
        super().__init__(dataset.iter_internal_ref_bundles, _BUNDLES, timeout_secs)
        self.executor: Any = None

    def leave(self) -> None:
        """Ends the execution, also one that hangs, and frees the blocks that it had ahead."""
        is_early = self.is_alive()
        super().leave()
        if is_early:
            self.executor = None
            gc.collect()  # Ray Data leaves its operators, with what they hold, as cyclic garbage.

    def too_late(self) -> Exception:
        """Which operators were not done."""
        unfinished = ray_private.unfinished_operators(self.executor) if self.executor else []
        names = "".join(f" ({name}: {num_tasks} tasks active)" for name, num_tasks in unfinished)
        return InputTimeoutError(f"Ray Data{names}", self._timeout_secs or 0.0)


class _TellThread(_ExecutionCallback):
    """Tells an `_Execution` what ends it. Of a module, since the context travels to Ray Data's tasks."""

    def before_execution_starts(self, executor: Any) -> None:
        thread = threading.current_thread()
        if isinstance(thread, _Execution):
            thread.executor = executor
            thread.waits_for(functools.partial(executor.shutdown, force=True))
