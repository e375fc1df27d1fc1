"""How an error travels from a worker to the driver, which raises it with its own type and the worker's traceback."""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFailure:
    """An exception in a form that can always be pickled.

    Attributes:
        where: The worker or task that raised it, in words.
        payload: The pickled exception. None: it cannot be pickled.
        kind: Name of its type.
        message: Its text.
        trace: The worker's traceback, formatted.
        peers_lost: Whether it is only the consequence of losing another worker, so that the group may restart.
    """

    where: str
    payload: bytes | None
    kind: str
    message: str
    trace: str
    peers_lost: bool

    @classmethod
    def of(cls, error: BaseException, where: str, *, has_peers: bool = False) -> RemoteFailure:
        """Return the failure for an exception. Runs where it was raised.

        Args:
            error: The exception.
            where: The worker or task, in words.
            has_peers: Whether this process has peers, whose loss can be the cause.
        """
        trace = "".join(traceback.format_exception(error))
        kind = type(error).__qualname__
        return cls(where, _pickled(error), kind, str(error), trace, has_peers and _is_loss_of_peers(error))

    def error(self) -> BaseException:
        """Return the exception to raise on the driver; a RuntimeError if the original cannot be restored."""
        error = self._unpickled() or RuntimeError(f"{self.kind}: {self.message}")
        error.add_note(f"Raised on {self.where}:\n{self.trace}")
        return error

    def _unpickled(self) -> BaseException | None:
        if self.payload is None:
            return None
        try:
            error: BaseException = pickle.loads(self.payload)
        except Exception as failed:  # Unpickling runs user code.
            logger.warning("A %s of %s cannot be unpickled on the driver: %r", self.kind, self.where, failed)
            return None
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
        except Exception as failed:  # Pickling and unpickling run user code.
            logger.debug("%s cannot be pickled: %r", type(candidate).__qualname__, failed)
    return None


def _without_graph(error: BaseException) -> BaseException:
    """Return a TensorFlow error without its operation, which cannot be pickled."""
    if hasattr(error, "node_def") and hasattr(error, "message"):
        return type(error)(None, None, error.message)
    return error


def _is_loss_of_peers(error: BaseException) -> bool:
    """Return whether TensorFlow or Ray raised the error because another process was lost."""
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
