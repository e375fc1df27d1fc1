"""A thread that makes items ahead: in order, so many at a time, and gone when it is left."""

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
    """Numbers, and which of them were made."""

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


def test_items_come_in_their_order() -> None:
    with Prefetcher(lambda: iter(range(100)), 3) as ahead:
        assert list(ahead) == list(range(100))


def test_an_error_comes_as_itself_behind_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("behind the last")

    with Prefetcher(items, 9) as ahead:
        assert [next(ahead), next(ahead)] == [1, 2]
        with pytest.raises(LookupError, match="behind the last"):
            next(ahead)


@pytest.mark.parametrize("size", [1, 3])
def test_so_many_items_are_there_at_a_time_with_the_one_in_use(size: int) -> None:
    noted = Noted()
    with Prefetcher(noted.numbers, size) as ahead:
        for taken in range(5):
            assert next(ahead) == taken
            assert noted.wait_for(taken + size)
            assert len(noted.made) == taken + size


def test_leaving_closes_the_iterator_and_ends_the_thread() -> None:
    noted = Noted()
    with Prefetcher(noted.numbers, 2) as ahead:
        next(ahead)
    assert noted.is_closed.is_set()
    assert not ahead.is_alive()


def test_leaving_frees_what_an_error_holds_that_nobody_took() -> None:
    class Block:
        pass

    held = []

    def items() -> Iterator[int]:
        block = Block()
        held.append(weakref.ref(block))
        yield 1
        raise LookupError("never seen")

    gc.disable()
    try:
        with Prefetcher(items, 9) as ahead:
            ahead.join(SECS)
            assert held[0]() is not None
        assert held[0]() is None
    finally:
        gc.enable()


def test_leaving_ends_a_wait_for_another_one_and_what_was_told_to_end_its_wait() -> None:
    waits, ended, inner_is_left = threading.Event(), threading.Event(), []

    def inner() -> Iterator[int]:
        thread = threading.current_thread()
        assert isinstance(thread, Prefetcher)
        thread.waits_for(ended.set)
        waits.set()
        assert ended.wait(SECS)
        yield 1

    def outer() -> Iterator[int]:
        with Prefetcher(inner, 2) as ahead:
            try:
                yield from ahead
            except CancelledError:
                inner_is_left.append(True)
                raise

    with Prefetcher(outer, 2) as ahead:
        assert waits.wait(SECS)
    assert not ahead.is_alive()
    assert inner_is_left == [True]


def test_who_waits_too_long_gets_an_error() -> None:
    never = threading.Event()

    def items() -> Iterator[int]:
        thread = threading.current_thread()
        assert isinstance(thread, Prefetcher)
        thread.waits_for(never.set)
        never.wait(SECS)
        yield 1

    with Prefetcher(items, 1, timeout_secs=0.01) as ahead, pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        next(ahead)
    assert not ahead.is_alive()


def test_nothing_is_late_that_nobody_wants_yet() -> None:
    gate, looks = threading.Event(), threading.Semaphore(0)

    class Slow(Prefetcher[int]):
        def _is_late(self) -> bool:
            looks.release()
            return super()._is_late()

    def inner() -> Iterator[int]:
        yield 1
        assert gate.wait(SECS)
        yield 2
        thread = threading.current_thread()
        assert isinstance(thread, Prefetcher)
        never = threading.Event()
        thread.waits_for(never.set)
        never.wait(SECS)

    def outer() -> Iterator[int]:
        with Slow(inner, 1, timeout_secs=0.05) as ahead:
            yield from ahead

    with Prefetcher(outer, 2) as ahead:
        assert next(ahead) == 1
        for _ in range(3):
            assert looks.acquire(timeout=SECS)
        gate.set()
        assert next(ahead) == 2
        with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
            next(ahead)
