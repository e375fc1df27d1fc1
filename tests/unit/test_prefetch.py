"""The prefetching thread: order, number of items at a time, errors, timeouts, and cancellation."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from ray_estimator._runtime.data.prefetch import Prefetcher

SECS = 10.0


class Noted:
    """Endless numbers, and a record of those produced."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.condition = threading.Condition()
        self.is_closed = threading.Event()

    def numbers(self) -> Iterator[int]:
        try:
            for number in itertools.count():
                with self.condition:
                    self.made.append(number)
                    self.condition.notify_all()
                yield number
        finally:
            self.is_closed.set()

    def wait_for(self, count: int) -> bool:
        with self.condition:
            return self.condition.wait_for(lambda: len(self.made) >= count, SECS)


def test_items_keep_their_order() -> None:
    with Prefetcher(lambda: iter(range(100)), 3) as prefetched:
        assert list(prefetched) == list(range(100))


def test_an_error_is_raised_unchanged_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("after the last")

    with Prefetcher(items, 9) as prefetched:
        assert [next(prefetched), next(prefetched)] == [1, 2]
        with pytest.raises(LookupError, match="after the last"):
            next(prefetched)


@pytest.mark.parametrize("size", [1, 3])
def test_size_includes_the_item_in_use(size: int) -> None:
    noted = Noted()
    with Prefetcher(noted.numbers, size) as prefetched:
        for taken in range(5):
            assert next(prefetched) == taken
            assert noted.wait_for(taken + size)
            assert len(noted.made) == taken + size


def test_cancelling_closes_the_iterator_and_ends_the_thread() -> None:
    noted = Noted()
    with Prefetcher(noted.numbers, 2) as prefetched:
        next(prefetched)
    assert noted.is_closed.is_set()
    assert not prefetched.is_alive()


def test_cancelling_frees_the_objects_of_an_error_that_was_not_raised() -> None:
    class Block:
        pass

    held = []

    def items() -> Iterator[int]:
        block = Block()
        held.append(weakref.ref(block))
        yield 1
        raise LookupError("never raised")

    gc.disable()
    try:
        with Prefetcher(items, 9) as prefetched:
            prefetched.join(SECS)
            assert held[0]() is not None
        assert held[0]() is None
    finally:
        gc.enable()


def test_cancelling_interrupts_nested_prefetchers_and_their_waits() -> None:
    waits, ended, inner_cancelled = threading.Event(), threading.Event(), []

    def inner() -> Iterator[int]:
        thread = threading.current_thread()
        assert isinstance(thread, Prefetcher)
        thread.interrupt_with(ended.set)
        waits.set()
        assert ended.wait(SECS)
        yield 1

    def outer() -> Iterator[int]:
        with Prefetcher(inner, 2) as prefetched:
            try:
                yield from prefetched
            except CancelledError:
                inner_cancelled.append(True)
                raise

    with Prefetcher(outer, 2) as prefetched:
        assert waits.wait(SECS)
    assert not prefetched.is_alive()
    assert inner_cancelled == [True]


def test_a_wait_beyond_the_timeout_raises() -> None:
    never = threading.Event()

    def items() -> Iterator[int]:
        thread = threading.current_thread()
        assert isinstance(thread, Prefetcher)
        thread.interrupt_with(never.set)
        never.wait(SECS)
        yield 1

    with Prefetcher(items, 1, timeout_secs=0.01) as prefetched, pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        next(prefetched)
    assert not prefetched.is_alive()


def test_time_counts_only_while_the_outer_consumer_waits() -> None:
    gate, looks = threading.Event(), threading.Semaphore(0)

    class Slow(Prefetcher[int]):
        def _has_timed_out(self) -> bool:
            looks.release()
            return super()._has_timed_out()

    def inner() -> Iterator[int]:
        yield 1
        assert gate.wait(SECS)
        yield 2
        thread = threading.current_thread()
        assert isinstance(thread, Prefetcher)
        never = threading.Event()
        thread.interrupt_with(never.set)
        never.wait(SECS)

    def outer() -> Iterator[int]:
        with Slow(inner, 1, timeout_secs=0.05) as prefetched:
            yield from prefetched

    with Prefetcher(outer, 2) as prefetched:
        assert next(prefetched) == 1
        for _ in range(3):
            assert looks.acquire(timeout=SECS)
        gate.set()
        assert next(prefetched) == 2
        with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
            next(prefetched)
