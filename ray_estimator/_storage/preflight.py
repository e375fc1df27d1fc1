"""Whether model_dir can be used, tried before anything is started: the error says what failed, and from where."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from ray_estimator._storage.storage import Storage
from ray_estimator.errors import ModelDirAccessError


@dataclass(frozen=True)
class Preflight:
    """A check of model_dir, as it travels.

    Attributes:
        model_dir: Local path or URL.
        storage: Opens it.
    """

    model_dir: str
    storage: Storage

    @contextlib.contextmanager
    def file_from(self, where: str) -> Iterator[str]:
        """A small file in model_dir: written, read back and found in the listing, and deleted at the end.

        Args:
            where: Where this runs, for the error.

        Yields:
            The file's name.

        Raises:
            ModelDirAccessError: Something of this does not work.
        """
        name = f".preflight-{uuid.uuid4().hex}"
        url = self.storage.join(self.model_dir, name)
        with self._doing(f"writing {url}", where):
            self.storage.write_bytes(url, name.encode())
        try:
            with self._doing(f"reading {url} back", where):
                _require(self.storage.read_bytes(url) == name.encode(), "it holds something else than was written")
            with self._doing(f"listing {self.model_dir}", where):
                _require(name in self.storage.list_dir(self.model_dir), f"{name} was written, but is not listed")
            yield name
        except BaseException:
            with contextlib.suppress(Exception):
                self.storage.remove(url)
            raise
        with self._doing(f"deleting {url}", where):
            self.storage.remove(url)
            _require(not self.storage.exists(url), "it was deleted, but is still there")

    def look_for(self, name: str, where: str) -> None:
        """Reads the file that another process has there.

        Raises:
            ModelDirAccessError: It cannot be read, or is not there.
        """
        url = self.storage.join(self.model_dir, name)
        with self._doing(f"reading {url}", where):
            try:
                self.storage.read_bytes(url)
            except FileNotFoundError:
                raise ModelDirAccessError.not_shared(self.storage.redacted(self.model_dir), where) from None

    @contextlib.contextmanager
    def _doing(self, what: str, where: str) -> Iterator[None]:
        try:
            yield
        except ModelDirAccessError:
            raise
        except Exception as error:  # Stores raise what they like.
            reason = self.storage.redacted(f"{what} failed: {_words(error)}")
            # Not chained to the store's error, whose text may hold credentials.
            raise ModelDirAccessError(self.storage.redacted(self.model_dir), where, reason) from None


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise OSError(otherwise)


def _words(error: BaseException) -> str:
    own = f"{type(error).__name__}: {error}"
    return own if error.__cause__ is None else f"{own} ({_words(error.__cause__)})"
