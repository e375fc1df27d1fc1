"""What Ray Data makes, in its order, pulled by a thread of its own, so that a wait for it has a deadline."""

from __future__ import annotations

import contextlib
import gc
import queue
import threading
from collections.abc import Iterator
from typing import Any

from ray.data import Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback

from ray_estimator._runtime.logs import unannounced
from ray_estimator.errors import InputTimeoutError

_END_SECS = 5.0


def in_order(dataset: Dataset) -> Dataset:
    """The dataset, so that what is read and made of it comes in its order, without progress bars."""
    ordered: Dataset = Dataset.copy(dataset, _deep_copy=True)
    # Without it Ray Data hands out blocks as they finish: another order each time.
    ordered.context.execution_options.preserve_order = True
    ordered.context.enable_progress_bars = False
    ordered.context.print_on_execution_start = False
    # Ray Data's own guard takes a consumer that is slow, or saves a checkpoint, for an execution that hangs.
    ordered.context.execution_no_progress_timeout_s = -1
    return ordered


def bundles_in_order(dataset: Dataset, timeout_secs: float | None) -> Iterator[Any]:
    """References to the dataset's blocks, one bundle ahead. Leaving the iterator ends the execution.

    Raises:
        InputTimeoutError: Nothing came within `timeout_secs`; names the operators that were not done.
    """
    pull = _Pull(in_order(dataset))
    with unannounced(), contextlib.closing(pull):
        pull.start()
        while (bundle := pull.next(timeout_secs)) is not None:
            yield bundle


class _Pull(threading.Thread):
    """Runs one execution of a dataset, a bundle ahead of who takes them."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(name="ray-data-pull", daemon=True)
        dataset.context.custom_execution_callback_classes.append(_TellThread)
        self.executor: Any = None
        self._dataset = dataset
        self._wanted = threading.Semaphore(2)
        self._stopped = False
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def next(self, timeout_secs: float | None) -> Any:
        """The next bundle, or None behind the last."""
        try:
            bundle, error = self._results.get(timeout=timeout_secs)
        except queue.Empty:
            raise InputTimeoutError(f"Ray Data{self._unfinished()}", timeout_secs or 0.0) from None
        if error is not None:
            raise error
        self._wanted.release()
        return bundle

    def close(self) -> None:
        """Ends the execution, also one that hangs, and with it the thread; frees the blocks that it had ahead."""
        self._stopped = True
        self._wanted.release()
        if self.executor is None or not self.is_alive():
            return
        self.executor.shutdown(force=True)
        self.join(_END_SECS)
        self.executor = None
        gc.collect()  # Ray Data leaves its operators, with what they hold, as cyclic garbage.

    def run(self) -> None:
        """Pulls."""
        try:
            for bundle in self._dataset.iter_internal_ref_bundles():
                self._wanted.acquire()
                if self._stopped:
                    return
                self._results.put((bundle, None))
            self._results.put((None, None))
        except BaseException as error:
            self._results.put((None, error))

    def _unfinished(self) -> str:
        if self.executor is None:
            return ""
        operators = [op for op in self.executor._topology if not op.has_completed()]
        return "".join(f" ({op.name}: {op.num_active_tasks()} tasks active)" for op in operators)


class _TellThread(ExecutionCallback):
    """Tells a `_Pull` which execution is its own. Of a module, since the context travels to Ray Data's tasks."""

    def before_execution_starts(self, executor: Any) -> None:
        thread = threading.current_thread()
        if isinstance(thread, _Pull):
            thread.executor = executor
