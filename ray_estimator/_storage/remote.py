"""Files of remote stores, and of `memory://`. The only module that knows fsspec."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
from fsspec.dircache import DirCache
from fsspec.implementations.memory import MemoryFileSystem

from ray_estimator._storage.local import LocalFiles
from ray_estimator._storage.retry import is_transient_remotely

_RANGES_AT_ONCE = 8
_PART_BYTES = 8 * 2**20
_MOST_PARTS = 9000


def open_remote(url: str, storage_options: Mapping[str, Any]) -> tuple[RemoteFiles, str]:
    """Who serves `url`, and the path by which it knows the file."""
    filesystem, path = fsspec.core.url_to_fs(url, **storage_options)
    return (_MemoryFiles if isinstance(filesystem, MemoryFileSystem) else RemoteFiles)(filesystem), path


class RemoteFiles:
    """Files of an fsspec file system."""

    turn: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def __init__(self, filesystem: Any) -> None:
        # Others write to the same store: a remembered listing would hide what they did.
        filesystem.invalidate_cache()
        if isinstance(getattr(filesystem, "dircache", None), DirCache):
            filesystem.dircache.use_listings_cache = False
        self._filesystem = filesystem
        # The others make no promise of taking several calls at once.
        self.threads = _RANGES_AT_ONCE if filesystem.async_impl else 1
        put_file = getattr(filesystem, "_put_file", filesystem.put_file)
        self._takes_part_size = "chunksize" in inspect.signature(put_file).parameters

    def is_transient(self, error: Exception) -> bool:
        return is_transient_remotely(error)

    def read(self, path: str) -> bytes:
        return bytes(self._filesystem.cat_file(path))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        return bytes(self._filesystem.cat_file(path, start=start, end=end))

    def write(self, path: str, data: bytes, durable: bool) -> None:
        self._in_its_directory(path, lambda: self._filesystem.pipe_file(path, data))

    def create(self, path: str, data: bytes) -> None:
        try:
            self._in_its_directory(path, lambda: self._filesystem.pipe_file(path, data, mode="create"))
        except OSError as error:
            # Stores that speak S3 may refuse in words of their own.
            if isinstance(error, FileExistsError) or self.exists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
            raise

    def put(self, local_path: str, path: str, move: bool) -> None:
        how = {}
        if self._takes_part_size:
            # Several parts are in memory at once, and stores limit how many parts a file may have.
            how["chunksize"] = max(_PART_BYTES, os.path.getsize(local_path) // _MOST_PARTS)
        self._in_its_directory(path, lambda: self._filesystem.put_file(local_path, path, **how))

    def get(self, path: str, local_path: str) -> None:
        self._filesystem.get_file(path, local_path)

    def entries(self, path: str) -> dict[str, int | None]:
        # Object stores may hold an empty object that stands for the directory itself.
        own = path.rstrip("/")
        listed = {entry["name"].rstrip("/"): entry for entry in self._filesystem.ls(path, detail=True)}
        return {
            name.rpartition("/")[2]: None if entry["type"] == "directory" else entry["size"]
            for name, entry in listed.items()
            if name != own
        }

    def below(self, path: str) -> list[str]:
        return [found.removeprefix(path).lstrip("/") for found in self._filesystem.find(path)]

    def exists(self, path: str) -> bool:
        return self._kind(path) is not None

    def is_file(self, path: str) -> bool:
        return self._kind(path) == "file"

    def _kind(self, path: str) -> str | None:
        # fsspec's own `exists` may take any error for a no.
        try:
            return str(self._filesystem.info(path)["type"])
        except FileNotFoundError:
            return None

    def size(self, path: str) -> int:
        return int(self._filesystem.info(path)["size"])

    def describe(self, path: str) -> dict[str, Mapping[str, Any]]:
        info = self._filesystem.info(path)
        if info.get("type") != "directory":
            return {"": info}
        found = self._filesystem.find(path, detail=True)
        return {name.removeprefix(path).lstrip("/"): each for name, each in found.items()}

    def remove(self, path: str) -> None:
        self._filesystem.rm_file(path)

    def remove_dir(self, path: str) -> None:
        self._filesystem.rm(path, recursive=True)

    def remove_stale_temporaries(self, path: str, older_than_secs: float) -> None:
        """There are none: a put is the file or nothing."""

    def make_dir(self, path: str) -> None:
        # Where there are buckets, fsspec would make a missing one; a typing error is more likely.
        bucket = path.partition("/")[0]
        if bucket and not self.exists(bucket):
            raise FileNotFoundError(errno.ENOENT, "No such bucket or container", bucket)
        self._filesystem.makedirs(path, exist_ok=True)

    def _in_its_directory(self, path: str, write: Callable[[], Any]) -> None:
        """Calls `write`; once more, with the directory made, on stores that have directories and miss this one."""
        try:
            write()
        except FileNotFoundError:
            self.make_dir(path.rpartition("/")[0])
            write()


class _MemoryFiles(RemoteFiles):
    """Files of fsspec's `memory://`: objects of this process, which its threads may catch half made."""

    turn = threading.RLock()

    def put(self, local_path: str, path: str, move: bool) -> None:
        self.write(path, LocalFiles().read(local_path), True)

    def get(self, path: str, local_path: str) -> None:
        content = self.read(path)
        with open(local_path, "wb") as file:
            file.write(content)

    def make_dir(self, path: str) -> None:
        self._filesystem.makedirs(path, exist_ok=True)
