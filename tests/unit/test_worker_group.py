"""Ports and wrappers of a training group, without Ray running."""

from __future__ import annotations

import socket

import pytest

from ray_estimator._jobs.remote_errors import RemoteFailure, WorkerFailed
from ray_estimator._runtime.train import worker_group


def test_a_chosen_port_is_held_until_the_server_binds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_group, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("TF_GRPC_REUSE_PORT", "0")
    monkeypatch.setattr(worker_group, "_held_port", None)
    port = int(worker_group._hold_port().rpartition(":")[2])
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("", port))
    # TensorFlow's server asks to share the port, as we do.
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("", port))
        server.listen()
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            connection, _ = server.accept()
            connection.sendall(b"heard")
            assert client.recv(5) == b"heard"
            connection.close()
    assert worker_group._held_port is not None
    worker_group._held_port.close()


def test_a_failure_is_found_behind_rays_wrappers() -> None:
    failure = RemoteFailure.of(ValueError("x"), "rank 1")

    class Wrapper(Exception):
        def __init__(self, inner: BaseException) -> None:
            self._base_exc = inner

    assert worker_group.failure_in(Wrapper(Wrapper(WorkerFailed(failure)))) is failure
    assert worker_group.failure_in(Wrapper(ValueError("y"))) is None
    assert worker_group.failure_in(None) is None
