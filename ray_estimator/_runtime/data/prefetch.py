"""What an iterator gives, made ahead of who takes it by a thread of its own."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

_LEAVE_SECS = 5.0
_END: Any = object()


class Prefetcher(threading.Thread, Generic[T]):
    """Walks through an iterator, so far that there are `size` items at a time, with the one that was given last.

    Leaving the context ends the thread, also while it waits for another `Prefetcher` or for what `waits_for` was told.

    Args:
        items: Gives the iterator. Called in the thread.
        size: How many items there are at a time.
        timeout_secs: How long to wait for the next item; None: no limit. While another `Prefetcher` waits for it, only
            the time in which that one is itself waited for counts.
    """

    def __init__(self, items: Callable[[], Iterator[T]], size: int, timeout_secs: float | None = None) -> None:
        super().__init__(name=f"ahead of {items.__qualname__}", daemon=True)
        self._items = items
        self._timeout_secs = timeout_secs
        self._room = threading.Semaphore(size - 1)
        self._made: queue.SimpleQueue[tuple[T, BaseException | None]] = queue.SimpleQueue()
        self._is_left = False
        self._end_wait: Callable[[], None] | None = None
        self._wanted_since: float | None = None

    def __enter__(self) -> Self:
        taker = threading.current_thread()
        if isinstance(taker, Prefetcher):
            taker.waits_for(self.leave)
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next item.

        Raises:
            CancelledError: Another thread has left this.
            Exception: What the iterator raised, as itself, behind the items that it gave; or what `too_late` gives.
        """
        self._room.release()
        self._wanted_since = time.monotonic()
        try:
            item, error = self._get()
        finally:
            self._wanted_since = None
        try:
            self._require_taker()
            if error is not None:
                raise error
        finally:
            del error  # It would hold its traceback, and that this frame, and all that they hold.
        if item is _END:
            raise StopIteration
        return item

    def too_late(self) -> Exception:
        """What is raised if no item came in time."""
        return TimeoutError(f"Nothing came within {self._timeout_secs} s.")

    def waits_for(self, end: Callable[[], None] | None) -> None:
        """Tells what ends the wait that comes now. Called in the thread.

        Raises:
            CancelledError: It need not begin to wait.
        """
        self._end_wait = end
        self._require_taker()

    def leave(self) -> None:
        """Ends the thread, and wakes who waits for it."""
        self._is_left = True
        self._room.release()
        self._made.put((_END, None))
        if self._end_wait is not None:
            self._end_wait()
        # A generator that nobody holds any more may be closed by any thread.
        if self.is_alive() and self is not threading.current_thread():
            self.join(_LEAVE_SECS)
        self._end_wait = None
        self._let_go()

    def run(self) -> None:
        """Makes the items."""
        try:
            self._require_taker()
            items = self._items()
            while self._has_room():
                self._made.put((next(items), None))
        except StopIteration:
            self._made.put((_END, None))
        except BaseException as error:
            self._made.put((_END, error))

    def _get(self) -> tuple[T, BaseException | None]:
        while True:
            try:
                return self._made.get(timeout=self._timeout_secs)
            except queue.Empty:
                if self._is_late():
                    raise self.too_late() from None

    def _is_late(self) -> bool:
        taker = threading.current_thread()
        if not isinstance(taker, Prefetcher):
            return True
        since = taker._wanted_since
        return since is not None and time.monotonic() - since >= (self._timeout_secs or 0.0)

    def _let_go(self) -> None:
        """Of what nobody took: an error, too, holds its traceback, and that all that the iterator held."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._made.get_nowait()
        self._made.put((_END, None))

    def _has_room(self) -> bool:
        self._room.acquire()
        return not self._is_left

    def _require_taker(self) -> None:
        if self._is_left:
            raise CancelledError
