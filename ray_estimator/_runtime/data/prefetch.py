"""A thread that prefetches the items of an iterator."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

_JOIN_SECS = 5.0
_END: Any = object()


class Prefetcher(threading.Thread, Generic[T]):
    """Iterates over `items` in a thread, and holds up to `size` items, including the one returned last.

    Leaving the context stops the thread, even while it waits for another `Prefetcher`, or for something that
    `interrupt_with` can interrupt.

    Args:
        items: Returns the iterator. Called in the thread.
        size: Maximum number of items at a time.
        timeout_secs: How long to wait for the next item. None: no limit. If the consumer is another `Prefetcher`, only
            the time during which that one has a waiting consumer counts.
    """

    def __init__(self, items: Callable[[], Iterator[T]], size: int, timeout_secs: float | None = None) -> None:
        super().__init__(name=f"prefetch {items.__qualname__}", daemon=True)
        self._items = items
        self._timeout_secs = timeout_secs
        self._slots = threading.Semaphore(size - 1)
        self._queue: queue.SimpleQueue[tuple[T, BaseException | None]] = queue.SimpleQueue()
        self._is_cancelled = False
        self._interrupt: Callable[[], None] | None = None
        self._waiting_since: float | None = None

    def __enter__(self) -> Self:
        consumer = threading.current_thread()
        if isinstance(consumer, Prefetcher):
            consumer.interrupt_with(self.cancel)
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Return the next item.

        Raises:
            CancelledError: Another thread has called `cancel`.
            Exception: The iterator's exception, after the items before it; or the exception of `timeout_error`.
        """
        self._slots.release()
        self._waiting_since = time.monotonic()
        try:
            item, error = self._get()
        finally:
            self._waiting_since = None
        try:
            self._raise_if_cancelled()
            if error is not None:
                raise error
        finally:
            del error  # Its traceback refers to this frame, which would keep the items of both alive.
        if item is _END:
            raise StopIteration
        return item

    def timeout_error(self) -> Exception:
        """Return the exception to raise if no item arrives in time."""
        return TimeoutError(f"No item arrived within {self._timeout_secs} s.")

    def interrupt_with(self, end: Callable[[], None] | None) -> None:
        """Set the function that interrupts the wait that follows. Called in the thread.

        Raises:
            CancelledError: `cancel` was called, so the wait must not start.
        """
        self._interrupt = end
        self._raise_if_cancelled()

    def cancel(self) -> None:
        """Stop the thread, and wake a consumer that waits for an item."""
        self._is_cancelled = True
        self._slots.release()
        self._queue.put((_END, None))
        if self._interrupt is not None:
            self._interrupt()
        # Wait until the thread has closed its generator; otherwise the garbage collector may close it in any thread.
        if self.is_alive() and self is not threading.current_thread():
            self.join(_JOIN_SECS)
        self._interrupt = None
        self._drop_items()

    def run(self) -> None:
        """Produce the items."""
        try:
            self._raise_if_cancelled()
            items = self._items()
            while self._acquire_slot():
                self._queue.put((next(items), None))
        except StopIteration:
            self._queue.put((_END, None))
        except BaseException as error:  # raised again by __next__
            self._queue.put((_END, error))

    def _get(self) -> tuple[T, BaseException | None]:
        while True:
            try:
                return self._queue.get(timeout=self._timeout_secs)
            except queue.Empty:
                if self._has_timed_out():
                    raise self.timeout_error() from None

    def _has_timed_out(self) -> bool:
        consumer = threading.current_thread()
        if not isinstance(consumer, Prefetcher):
            return True
        since = consumer._waiting_since
        return since is not None and time.monotonic() - since >= (self._timeout_secs or 0.0)

    def _drop_items(self) -> None:
        """Drop the remaining items, and an error, whose traceback refers to the iterator's objects."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put((_END, None))

    def _acquire_slot(self) -> bool:
        self._slots.acquire()
        return not self._is_cancelled

    def _raise_if_cancelled(self) -> None:
        if self._is_cancelled:
            raise CancelledError
