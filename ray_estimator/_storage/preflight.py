"""Check access to model_dir before a run starts; errors say which operation failed, and where."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from ray_estimator._storage.storage import Storage
from ray_estimator.errors import ModelDirAccessError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preflight:
    """An access check of model_dir. Sent to workers.

    Attributes:
        model_dir: Local path or URL.
        storage: Accesses it.
    """

    model_dir: str
    storage: Storage

    @contextlib.contextmanager
    def file_from(self, where: str) -> Iterator[str]:
        """Write a small file to model_dir, read it back and list it; delete it at the end.

        Args:
            where: The process that runs this, for the error.

        Yields:
            The name of the file.

        Raises:
            ModelDirAccessError: One of these operations failed.
        """
        name = f".preflight-{uuid.uuid4().hex}"
        url = self.storage.join(self.model_dir, name)
        with self._attempting(f"writing {url}", where):
            self.storage.write_bytes(url, name.encode())
        try:
            with self._attempting(f"reading {url} back", where):
                _require(self.storage.read_bytes(url) == name.encode(), "its content differs from what was written")
            with self._attempting(f"listing {self.model_dir}", where):
                _require(name in self.storage.list_dir(self.model_dir), f"{name} was written, but is not listed")
            yield name
        except BaseException:
            try:
                self.storage.remove(url)
            except Exception as error:  # Depends on the store; the first error is raised.
                logger.warning("%s", self.storage.redacted(f"Could not delete {url}: {error}"))
            raise
        with self._attempting(f"deleting {url}", where):
            self.storage.remove(url)
            _require(not self.storage.exists(url), "it was deleted, but still exists")

    def look_for(self, name: str, where: str) -> None:
        """Read the file that another process has written.

        Raises:
            ModelDirAccessError: It is missing or cannot be read.
        """
        url = self.storage.join(self.model_dir, name)
        with self._attempting(f"reading {url}", where):
            try:
                self.storage.read_bytes(url)
            except FileNotFoundError:
                raise ModelDirAccessError.not_shared(self.storage.redacted(self.model_dir), where) from None

    @contextlib.contextmanager
    def _attempting(self, operation: str, where: str) -> Iterator[None]:
        try:
            yield
        except ModelDirAccessError:
            raise
        except Exception as error:  # Depends on the store.
            reason = self.storage.redacted(f"{operation} failed: {_chain_of(error)}")
            # Not chained to the store's error, whose text may hold credentials.
            raise ModelDirAccessError(self.storage.redacted(self.model_dir), where, reason) from None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise OSError(message)


def _chain_of(error: BaseException) -> str:
    own = f"{type(error).__name__}: {error}"
    return own if error.__cause__ is None else f"{own} ({_chain_of(error.__cause__)})"
