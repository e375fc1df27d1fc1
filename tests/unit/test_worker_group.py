"""Ports, errors and heartbeats of a training group, without Ray running."""

from __future__ import annotations

import socket
import threading
from unittest.mock import Mock

import pytest
import ray
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from ray_estimator._jobs.remote_errors import RemoteFailure, WorkerFailed
from ray_estimator._runtime.train import worker_group


def test_a_reserved_port_can_be_bound_by_tensorflows_server_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_group, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("TF_GRPC_REUSE_PORT", "0")
    monkeypatch.setattr(worker_group, "_reserved_port", None)
    port = int(worker_group._reserve_port().rpartition(":")[2])
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("", port))
    # TensorFlow's server sets SO_REUSEPORT too.
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("", port))
        server.listen()
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            connection, _ = server.accept()
            connection.sendall(b"heard")
            assert client.recv(5) == b"heard"
            connection.close()
    assert worker_group._reserved_port is not None
    worker_group._reserved_port.close()


def test_a_failure_is_found_behind_rays_wrappers() -> None:
    failure = RemoteFailure.of(ValueError("x"), "rank 1")

    def wrapped(error: BaseException) -> BaseException:
        return ControllerError(UserExceptionWithTraceback(error, "traceback"))

    assert worker_group.failure_in(wrapped(WorkerFailed(failure))) is failure
    assert worker_group.failure_in(wrapped(ValueError("y"))) is None
    assert worker_group.failure_in(None) is None


def test_a_monitor_that_does_not_answer_is_logged_once_and_training_continues(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beats = threading.Semaphore(0)

    def get(ref: object, timeout: float) -> bool:
        beats.release()
        raise ray.exceptions.GetTimeoutError("no answer")

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(worker_group, "_HEARTBEAT_SECS", 0.001)
    group = worker_group.Group("first", 1, ("",))
    work = worker_group.GroupWork(Mock(), Mock(), None, None, None, {})
    with worker_group._heartbeat(worker_group.GroupWorker(0, group, work)):
        for _ in range(3):
            assert beats.acquire(timeout=10)
    assert [record.message for record in caplog.records] == ["The heartbeat of rank 0 gets no answer: no answer"]
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]
