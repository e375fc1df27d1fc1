"""Files of remote stores and of `memory://`. The only module that imports fsspec."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

import fsspec
from fsspec.dircache import DirCache
from fsspec.implementations.memory import MemoryFileSystem

from ray_estimator._storage.local import LocalFiles
from ray_estimator._storage.retry import is_transient_remotely

_CONCURRENT_RANGES = 6
_RANGE_BYTES = 40 * 2**20  # some servers read the whole object for each range
_PART_BYTES = 8 * 2**20
_MAX_PARTS = 9000


def open_remote(url: str, storage_options: Mapping[str, Any]) -> tuple[RemoteFiles, str]:
    """Return the store of `url`, and the path of the file in it."""
    filesystem, path = fsspec.core.url_to_fs(url, **storage_options)
    return (_MemoryFiles if isinstance(filesystem, MemoryFileSystem) else RemoteFiles)(filesystem), path


class RemoteFiles:
    """Files of an fsspec file system."""

    range_bytes = _RANGE_BYTES
    lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def __init__(self, filesystem: Any) -> None:
        # Other processes write to the same store; cached listings would hide their changes.
        filesystem.invalidate_cache()
        if isinstance(getattr(filesystem, "dircache", None), DirCache):
            filesystem.dircache.use_listings_cache = False
        self._filesystem = filesystem
        # Synchronous file systems do not promise to be thread-safe.
        self.threads = _CONCURRENT_RANGES if filesystem.async_impl else 1
        self._has_part_size = "chunksize" in _parameters_of(filesystem, "put_file")
        # Small files are read whole: s3fs would request the size first, to decide whether to split the download.
        splits_reads = "max_concurrency" in _parameters_of(filesystem, "cat_file")
        self._unsplit = {"max_concurrency": 1} if splits_reads else {}

    def is_transient(self, error: Exception) -> bool:
        return is_transient_remotely(error)

    def read(self, path: str) -> bytes:
        return bytes(self._filesystem.cat_file(path, **self._unsplit))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        return bytes(self._filesystem.cat_file(path, start=start, end=end))

    def write(self, path: str, data: bytes, durable: bool) -> None:
        self._with_directory(path, lambda: self._filesystem.pipe_file(path, data))

    def create(self, path: str, data: bytes) -> None:
        try:
            self._with_directory(path, lambda: self._filesystem.pipe_file(path, data, mode="create"))
        except OSError as error:
            # S3-compatible stores differ in the error that they return.
            if isinstance(error, FileExistsError) or self.exists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
            raise

    def put(self, local_path: str, path: str, move: bool) -> None:
        options = {}
        if self._has_part_size:
            # Several parts are in memory concurrently, and stores limit the number of parts of a file.
            options["chunksize"] = max(_PART_BYTES, os.path.getsize(local_path) // _MAX_PARTS)
        self._with_directory(path, lambda: self._filesystem.put_file(local_path, path, **options))

    def get(self, path: str, local_path: str) -> None:
        self._filesystem.get_file(path, local_path)

    def entries(self, path: str) -> dict[str, int | None]:
        # Object stores may contain an empty object for the directory itself.
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
        # fsspec's `exists` may return False after any error.
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
        """Do nothing: a put is atomic."""

    def make_dir(self, path: str) -> None:
        # fsspec would create a missing bucket; a typo is more likely.
        bucket = path.partition("/")[0]
        if bucket and not self.exists(bucket):
            raise FileNotFoundError(errno.ENOENT, "No such bucket or container", bucket)
        self._filesystem.makedirs(path, exist_ok=True)

    def _with_directory(self, path: str, write: Callable[[], Any]) -> None:
        """Call `write`; if the directory is missing on a store that has directories, create it and call again."""
        try:
            write()
        except FileNotFoundError:
            self.make_dir(path.rpartition("/")[0])
            write()


class _MemoryFiles(RemoteFiles):
    """Files of fsspec's `memory://`: objects of this process, locked since fsspec does not write them atomically."""

    lock = threading.RLock()

    def put(self, local_path: str, path: str, move: bool) -> None:
        self.write(path, LocalFiles().read(local_path), True)

    def get(self, path: str, local_path: str) -> None:
        content = self.read(path)
        with open(local_path, "wb") as file:
            file.write(content)

    def make_dir(self, path: str) -> None:
        self._filesystem.makedirs(path, exist_ok=True)


def _parameters_of(filesystem: Any, method: str) -> Collection[str]:
    function = getattr(filesystem, f"_{method}", None) or getattr(filesystem, method)
    return inspect.signature(function).parameters
