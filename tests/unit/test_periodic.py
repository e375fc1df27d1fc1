"""The thread that calls a function periodically."""

from __future__ import annotations

import logging
import threading

import pytest

from ray_estimator._process.periodic import PeriodicThread


def test_calls_repeat_while_the_context_is_open_and_never_after_it() -> None:
    calls, three = [], threading.Event()

    def call() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            three.set()

    with PeriodicThread(call, 0.001, name="counting") as thread:
        assert three.wait(30)
    assert not thread.is_alive()
    assert set(calls) == {"counting"}


def test_the_thread_is_joined_although_its_interval_is_long() -> None:
    with PeriodicThread(lambda: None, 3600.0, name="rare") as thread:
        assert thread.is_alive()
    assert not thread.is_alive()


def test_an_error_is_logged_once_with_its_traceback_and_the_calls_continue(caplog: pytest.LogCaptureFixture) -> None:
    calls, enough = [], threading.Event()

    def call() -> None:
        calls.append(None)
        if len(calls) == 3:
            enough.set()
        else:
            raise OSError("no space")

    with caplog.at_level(logging.WARNING), PeriodicThread(call, 0.001, name="saving events"):
        assert enough.wait(30)
    assert [record.message for record in caplog.records] == ["saving events failed and is retried: no space"] * 2
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]


def test_a_call_may_stop_its_own_thread() -> None:
    stopped = threading.Event()

    def call() -> None:
        thread.stop()
        stopped.set()

    with PeriodicThread(call, 0.001, name="once") as thread:
        assert stopped.wait(30)
    assert not thread.is_alive()


def test_a_slow_call_is_called_less_often() -> None:
    calls, first, release = [], threading.Event(), threading.Event()

    def call() -> None:
        calls.append(None)
        first.set()
        release.wait(0.05)

    with PeriodicThread(call, 0.001, name="slow", max_load=1e-6) as thread:
        assert first.wait(30)
        thread.join(0.3)
    assert len(calls) == 1


def test_a_call_that_hangs_does_not_block_the_exit(caplog: pytest.LogCaptureFixture) -> None:
    calling, release = threading.Event(), threading.Event()

    def call() -> None:
        calling.set()
        release.wait(60)

    with PeriodicThread(call, 0.001, name="the heartbeat", exit_timeout_secs=0.05) as thread:
        assert calling.wait(30)
    assert thread.is_alive()
    assert "the heartbeat has not returned within 0.05 s" in caplog.text
    release.set()
    thread.join(30)
    assert not thread.is_alive()
