"""Errors that travel from a worker to the driver."""

from __future__ import annotations

import pickle
import sys
import threading
import traceback
from typing import Any

import pytest

from ray_estimator._jobs.remote_errors import RemoteFailure, WorkerFailed


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def raised(error: Exception) -> Exception:
    def user_code() -> None:
        raise error

    try:
        user_code()
    except Exception as caught:
        return caught
    raise AssertionError


def sent(error: Exception) -> BaseException:
    carrier = WorkerFailed(RemoteFailure.of(raised(error), "rank 3"))
    return pickle.loads(pickle.dumps(carrier)).failure.error()


def test_an_error_keeps_its_type_and_has_the_workers_traceback_once() -> None:
    arrived = sent(KeyError("column"))
    assert isinstance(arrived, KeyError)
    assert arrived.args == ("column",)
    shown = "".join(traceback.format_exception(arrived))
    assert shown.count("in user_code") == 1
    assert "Raised on rank 3" in shown


def test_an_error_that_cannot_be_pickled_arrives_as_its_text() -> None:
    arrived = sent(Unpicklable())
    assert isinstance(arrived, RuntimeError)
    assert "Unpicklable: holds a lock" in str(arrived)
    assert "in user_code" in "".join(arrived.__notes__)


class OnlyOnWorkers(Exception):
    def __reduce__(self) -> Any:
        return _only_on_workers, ()


is_driver = False


def _only_on_workers() -> OnlyOnWorkers:
    if is_driver:
        raise ImportError("no such module")
    return OnlyOnWorkers()


def test_an_error_that_cannot_be_unpickled_arrives_as_its_text_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failure = RemoteFailure.of(OnlyOnWorkers("lost"), "rank 3")
    monkeypatch.setattr(sys.modules[__name__], "is_driver", True)
    assert str(failure.error()) == "OnlyOnWorkers: lost"
    assert "OnlyOnWorkers of rank 3 cannot be unpickled on the driver: ImportError('no such module')" in caplog.text


def test_errors_of_tensorflow_arrive_without_their_operation() -> None:
    import tensorflow as tf

    with tf.Graph().as_default():
        op = tf.constant(1.0).op
    arrived = sent(tf.errors.InvalidArgumentError(None, op, "bad shape"))
    assert isinstance(arrived, tf.errors.InvalidArgumentError)
    assert arrived.message == "bad shape"


@pytest.mark.parametrize(
    ("name", "text", "lost"),
    [
        ("UnavailableError", "Connection reset by peer", True),
        ("AbortedError", "worker restarted", True),
        ("InternalError", "Collective ops is aborted by: ...", True),
        ("InternalError", "could not allocate", False),
        ("InvalidArgumentError", "bad shape", False),
    ],
)
def test_only_the_loss_of_peers_allows_a_restart(name: str, text: str, lost: bool) -> None:
    import tensorflow as tf

    error = getattr(tf.errors, name)(None, None, text)
    assert RemoteFailure.of(error, "rank 0", has_peers=True).peers_lost is lost
    assert RemoteFailure.of(error, "rank 0").peers_lost is False
    assert RemoteFailure.of(ValueError(text), "rank 0", has_peers=True).peers_lost is False
