"""How an error of user code crosses from a worker to the driver: as itself, with the worker's traceback, once."""

from __future__ import annotations

import pickle
import sys
import traceback
from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteFailure:
    """An exception, as it travels.

    Attributes:
        where: Which worker or task raised it, in words.
        payload: The pickled exception; None if it cannot be pickled.
        kind: Name of its type.
        message: Its text.
        trace: The worker's traceback, formatted.
        peers_lost: Whether it only says that another worker went away, so that the group may start again.
    """

    where: str
    payload: bytes | None
    kind: str
    message: str
    trace: str
    peers_lost: bool

    @classmethod
    def of(cls, error: BaseException, where: str, *, has_peers: bool = False) -> RemoteFailure:
        """Packs `error`. Runs where it was raised.

        Args:
            error: What was raised.
            where: Where, in words.
            has_peers: Whether this process works together with others, whose loss could be the cause.
        """
        trace = "".join(traceback.format_exception(error))
        kind = type(error).__qualname__
        return cls(where, _pickled(error), kind, str(error), trace, has_peers and _says_peers_are_lost(error))

    def error(self) -> BaseException:
        """The exception, to be raised on the driver."""
        error: BaseException | None = None
        if self.payload is not None:
            try:
                error = pickle.loads(self.payload)
            except Exception:
                error = None
        if error is None:
            error = RuntimeError(f"{self.kind}: {self.message}")
        error.add_note(f"Raised on {self.where}:\n{self.trace}")
        return error

    def __str__(self) -> str:
        return f"{self.kind} on {self.where}: {self.message}"


class WorkerFailed(Exception):
    """Carries a `RemoteFailure` through Ray."""

    def __init__(self, failure: RemoteFailure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return str(self.failure)


def _pickled(error: BaseException) -> bytes | None:
    from ray import cloudpickle

    for candidate in (error, _without_graph(error)):
        try:
            payload: bytes = cloudpickle.dumps(candidate)
            if isinstance(pickle.loads(payload), type(error)):
                return payload
        except Exception:
            continue
    return None


def _without_graph(error: BaseException) -> BaseException:
    """A TensorFlow error without the operation that it points to, which cannot travel."""
    if hasattr(error, "node_def") and hasattr(error, "message"):
        return type(error)(None, None, error.message)
    return error


def _says_peers_are_lost(error: BaseException) -> bool:
    """Whether the error is of TensorFlow's or Ray's own making, because another process went away."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None:
        errors = tensorflow.errors
        if isinstance(error, errors.UnavailableError | errors.AbortedError | errors.CancelledError):
            return True
        if isinstance(error, errors.InternalError | errors.DeadlineExceededError) and "ollective" in str(error):
            return True
    ray = sys.modules.get("ray")
    if ray is None:
        return False
    errors = ray.exceptions
    nodes = errors.LocalRayletDiedError | errors.NodeDiedError | errors.RpcError
    return isinstance(error, nodes | errors.RayActorError | errors.ObjectLostError | errors.WorkerCrashedError)
