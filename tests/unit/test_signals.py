"""Deferred interrupts, and signals that stop training."""

from __future__ import annotations

import signal
import threading

import pytest

from ray_estimator._process.signals import Stop, stopped_by_signals, uninterrupted


def test_an_interrupt_is_deferred_until_the_end() -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")

    with pytest.raises(KeyboardInterrupt):
        work()

    assert done == ["the rest"]


def test_without_an_interrupt_the_handler_is_restored() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with uninterrupted():
        pass

    assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_are_not_affected() -> None:
    seen = []

    def within() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()

    assert seen == [signal.getsignal(signal.SIGINT)]


def test_sigint_requests_a_stop_and_is_raised_at_the_end() -> None:
    stop, seen = Stop(), []

    def work() -> None:
        with stopped_by_signals(stop):
            signal.raise_signal(signal.SIGINT)
            seen.append((stop.why, stop.at_once))

    with pytest.raises(KeyboardInterrupt):
        work()

    assert seen == [("SIGINT", False)]


def test_a_stop_request_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    stop = Stop()
    stop.announce()
    assert caplog.text == ""
    stop.why = "SIGINT"
    stop.announce()
    stop.announce()
    assert caplog.text.count("SIGINT: stopping after this step and saving") == 1


def test_sigterm_exits_with_status_143() -> None:
    with pytest.raises(SystemExit) as caught, stopped_by_signals(Stop()):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143


def test_a_second_signal_is_raised_immediately() -> None:
    seen = []

    def work() -> None:
        with stopped_by_signals(Stop()):
            signal.raise_signal(signal.SIGTERM)
            seen.append("between")
            signal.raise_signal(signal.SIGINT)
            seen.append("behind")

    with pytest.raises(KeyboardInterrupt):
        work()

    assert seen == ["between"]


def test_with_raise_at_first_the_first_signal_is_raised_and_requests_a_stop() -> None:
    stop, seen = Stop(), []

    def work() -> None:
        with stopped_by_signals(stop, raise_at_first=True):
            signal.raise_signal(signal.SIGTERM)
            seen.append("behind")

    with pytest.raises(SystemExit):
        work()

    assert seen == []
    assert stop.why == "SIGTERM"


def test_an_error_after_a_signal_becomes_its_cause() -> None:
    def work() -> None:
        with stopped_by_signals(Stop()):
            signal.raise_signal(signal.SIGINT)
            raise LookupError("the run's own")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__cause__, LookupError)


def test_an_error_without_a_signal_is_raised_unchanged() -> None:
    with pytest.raises(LookupError), stopped_by_signals(Stop()):
        raise LookupError("the run's own")


def test_handlers_are_restored_and_the_users_handler_is_called() -> None:
    calls = []

    def handler(number: int, frame: object) -> None:
        calls.append(("handler", number))

    def work() -> None:
        with stopped_by_signals(Stop()):
            signal.raise_signal(signal.SIGTERM)
            calls.append(("the rest", 0))

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(SystemExit):
            work()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)

    assert calls == [("the rest", 0), ("handler", signal.SIGTERM)]


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop = Stop()
    try:
        with stopped_by_signals(stop):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.why is None


def test_the_handler_of_ray_is_not_called() -> None:
    def handler(number: int, frame: object) -> None:
        raise AssertionError("called")

    handler.__module__ = "ray._private.worker"
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(SystemExit), stopped_by_signals(Stop()):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_other_threads_signals_are_not_handled() -> None:
    seen = []

    def within() -> None:
        with stopped_by_signals(Stop()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()

    assert seen == [signal.getsignal(signal.SIGTERM)]
