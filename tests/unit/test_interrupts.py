"""An interrupt waits for the end of what must not be left half done."""

from __future__ import annotations

import signal
import threading

import pytest

from ray_estimator._interrupts import uninterrupted


def test_an_interrupt_waits_for_the_end() -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")

    with pytest.raises(KeyboardInterrupt):
        work()

    assert done == ["the rest"]


def test_without_one_nothing_changes() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with uninterrupted():
        pass

    assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_go_on_as_they_are() -> None:
    seen = []

    def within() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()

    assert seen == [signal.getsignal(signal.SIGINT)]
