"""Call a function concurrently, with results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def map_in_order(function: Callable[[A], T], arguments: Iterable[A], threads: int) -> Iterator[T]:
    """Yield the results of `function` in the order of `arguments`; at most `threads` calls run ahead.

    After an error, or if closed early, no further calls start, and the running ones are awaited.
    """
    if threads == 1:
        yield from map(function, arguments)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="transfer")
    pending: deque[Future[T]] = deque()
    try:
        for argument in arguments:
            if len(pending) == threads:
                yield pending.popleft().result()
            pending.append(pool.submit(function, argument))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
