"""Retries: which errors, how often, and what is logged."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ray_estimator._storage import retry
from ray_estimator._storage.retry import ATTEMPTS, is_transient_locally, is_transient_remotely, retrying
from ray_estimator._storage.storage import Storage


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that advances only by sleeping; the list has the delays."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    return slept


class Failing:
    """Fails a number of times, then returns."""

    def __init__(self, times: int, error: Exception) -> None:
        self.times, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "done"


def shown(text: str) -> str:
    return text.replace("hunter2", "<redacted>")


def test_a_call_succeeds_after_transient_errors_which_are_logged(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    call = Failing(3, ConnectionResetError("reset, says hunter2"))
    assert retrying(call, lambda error: True, shown) == "done"
    assert call.calls == 4
    assert caplog.text.count("ConnectionResetError: reset, says <redacted>") == 3
    assert "attempt 1 of 5" in caplog.text


def test_delays_grow_and_are_random(pauses: list[float]) -> None:
    with pytest.raises(OSError, match="away"):
        retrying(Failing(99, OSError("away")), lambda error: True, shown)
    assert len(pauses) == ATTEMPTS - 1
    for number, pause in enumerate(pauses):
        longest = retry.FIRST_DELAY_SECS * 2**number
        assert longest / 2 <= pause <= longest


def test_the_last_error_is_raised_unchanged(pauses: list[float]) -> None:
    error = OSError("away")
    with pytest.raises(OSError, match="away") as raised:
        retrying(Failing(99, error), lambda error: True, shown)
    assert raised.value is error


def test_a_permanent_error_is_not_retried(pauses: list[float]) -> None:
    call = Failing(1, PermissionError("no"))
    with pytest.raises(PermissionError):
        retrying(call, is_transient_remotely, shown)
    assert call.calls == 1
    assert pauses == []


def test_no_attempt_starts_after_a_minute(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY_SECS", 40.0)
    with pytest.raises(OSError, match="away"):
        retrying(Failing(99, OSError("away")), lambda error: True, shown)
    assert sum(pauses) <= retry.TOTAL_SECS


class StatusError(Exception):
    """An HTTP error with the status in an attribute, as store libraries raise it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__("refused")
        self.__dict__.update(attributes)


def client_error(status: int) -> Exception:
    from botocore.exceptions import ClientError

    return ClientError({"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


def caused_by(error: Exception) -> Exception:
    outer = OSError("the file system's own words")
    outer.__cause__ = error
    return outer


def no_credentials() -> Exception:
    from botocore.exceptions import NoCredentialsError

    return NoCredentialsError()


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        OSError(errno.EREMOTEIO, "short read"),
        Exception("of a library's own kind"),
        StatusError(status=503),
        StatusError(status_code=429),
        StatusError(code=500),
        client_error(503),
        caused_by(client_error(500)),
    ],
    ids=repr,
)
def test_network_errors_are_transient(error: Exception) -> None:
    assert is_transient_remotely(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("not there"),
        FileExistsError("there"),
        PermissionError("no"),
        ValueError("bad bucket name"),
        ImportError("s3fs"),
        OSError(errno.ENOSPC, "full"),
        StatusError(status=403),
        StatusError(status_code=412),
        client_error(404),
        caused_by(client_error(403)),
        no_credentials(),
    ],
    ids=repr,
)
def test_answers_of_the_store_are_permanent(error: Exception) -> None:
    assert not is_transient_remotely(error)


def test_local_errors_of_network_file_systems_are_transient() -> None:
    assert is_transient_locally(OSError(errno.ESTALE, "stale"))
    # A second fsync may report success although the data is lost.
    assert not is_transient_locally(OSError(errno.EIO, "lost"))
    assert not is_transient_locally(FileNotFoundError("not there"))


@pytest.mark.parametrize("method", ["pipe_file", "cat_file", "info", "ls", "rm_file"])
def test_every_request_to_a_store_is_retried(
    method: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float], tmp_path: Path
) -> None:
    storage, url = Storage(), f"memory://{tmp_path.name}/a"
    original: Callable[..., Any] = getattr(MemoryFileSystem, method)
    failures = [TimeoutError("timed out"), TimeoutError("timed out")]

    def flaky(self: Any, *args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, method, flaky)
    storage.write_bytes(url, b"first")
    assert storage.read_bytes(url) == b"first"
    assert storage.size(url) == 5
    assert storage.list_dir(f"memory://{tmp_path.name}") == ["a"]
    storage.remove(url)
    assert not storage.exists(url)
    assert failures == []
    assert len(pauses) == 2
