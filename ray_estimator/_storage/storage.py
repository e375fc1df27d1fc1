"""Files on any store: the local file system, or any that fsspec supports.

Other modules refer to files by URL, a `str`: a local path, `file://...`, `memory://...`, `s3://...` and so on. Local
files are accessed through the operating system, which has fsync and atomic renames; all others through fsspec, where
one put creates one object, and readers see the whole object or none.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ray_estimator._storage.local import LocalFiles, files_below, make_parent
from ray_estimator._storage.redaction import USER_IN_URL, secrets_in
from ray_estimator._storage.remote import open_remote
from ray_estimator._storage.retry import retrying

A = TypeVar("A")
T = TypeVar("T")

_LOCAL_SCHEMES = ("file", "local")


@dataclass(frozen=True)
class Storage:
    """Access to the files that a run reads and writes.

    A value without open connections: it can be pickled, and works the same on the driver, on workers and in tasks.
    Errors of the store are raised unchanged; a missing file is a `FileNotFoundError` on every store.

    Attributes:
        storage_options: fsspec options for remote URLs (credentials, endpoints). Ignored for local files.
    """

    storage_options: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage_options", dict(self.storage_options or {}))

    def __repr__(self) -> str:
        # Names only: the values may be credentials.
        return f"Storage(storage_options=<{', '.join(sorted(self.storage_options or {}))}>)"

    def normalize(self, url: str) -> str:
        """Return the canonical form of `url`: an absolute local path, or a URL without a trailing slash.

        Raises:
            ValueError: `url` is empty.
        """
        if not url:
            raise ValueError("Expected a local path or a URL, got an empty string.")
        path = self.local_path(url)
        if path is not None:
            return path
        scheme, _, rest = url.partition("://")
        return f"{scheme}://{rest.rstrip('/')}"

    def local_path(self, url: str) -> str | None:
        """Return the absolute path of a local file or directory; None if `url` is remote."""
        scheme, separator, rest = url.partition("://")
        if not separator:
            return os.path.abspath(os.path.expanduser(url))
        return os.path.abspath(rest) if scheme in _LOCAL_SCHEMES else None

    def join(self, url: str, *names: str) -> str:
        """Return the URL of the path `names` below `url`."""
        return (url if url.endswith("/") else url + "/") + "/".join(names)

    def redacted(self, text: str) -> str:
        """Return `text` without credentials from `storage_options` or URLs."""
        for secret in sorted(secrets_in(self.storage_options or {}), key=len, reverse=True):
            text = text.replace(secret, "<redacted>")
        return USER_IN_URL.sub(r"\1<redacted>@", text)

    def read_bytes(self, url: str) -> bytes:
        """Return the content of a small file.

        Raises:
            FileNotFoundError: The file is missing.
        """
        return self._call(url, lambda files, path: files.read(path))

    def read_chunks(self, url: str, size: int | None = None) -> Iterator[bytes]:
        """Yield the content of a file in order. Ranges of a remote file are downloaded concurrently.

        Args:
            url: The file.
            size: Its size in bytes, if known; no more are read.

        Raises:
            FileNotFoundError: The file is missing.
        """
        files, _ = self._locate(url)
        size = self.size(url) if size is None else size

        def read(start: int) -> bytes:
            end = min(start + files.range_bytes, size)
            return self._call(url, lambda files, path: _require_length(files.read_range(path, start, end), end - start))

        return _map_in_order(read, range(0, size, files.range_bytes), files.threads)

    def write_bytes(self, url: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace a file atomically.

        Args:
            url: The file.
            data: Its content.
            durable: Whether the file, and everything put into its directory before, must survive a power loss.
        """
        self._call(url, lambda files, path: files.write(path, data, durable))

    def create_bytes(self, url: str, data: bytes) -> None:
        """Create a file that must not exist yet, atomically.

        Of several concurrent callers exactly one succeeds where the store enforces it: local files, the memory of this
        process, S3 and Azure (conditional put) and Google Cloud Storage (generation match). On other stores, such as
        SFTP, all may succeed, and the content of the last one stays.

        If a response was lost, the file may have the caller's own content although this raised; read it back to tell.

        Raises:
            FileExistsError: The file exists.
        """
        self._call(url, lambda files, path: files.create(path, data))

    def put_file(self, local_path: str, url: str, *, move: bool = False) -> None:
        """Create or replace the file `url` with the content of `local_path`, as atomically as `write_bytes`.

        It is durable across power loss only after a durable `write_bytes` into the same directory.

        Args:
            local_path: The file to copy.
            url: The target.
            move: Whether `local_path` may be renamed instead, where that saves a copy.
        """
        self._call(url, lambda files, path: files.put(local_path, path, move))

    def get_file(self, url: str, local_path: str) -> None:
        """Copy a file to `local_path`, whose directory is created if needed.

        Raises:
            FileNotFoundError: The file is missing.
        """
        make_parent(local_path)
        self._call(url, lambda files, path: files.get(path, local_path))

    def put_dir(self, local_dir: str, url: str, *, last: Sequence[str] = ()) -> None:
        """Copy a local directory with its subdirectories.

        Args:
            local_dir: The directory to copy.
            url: The target.
            last: Relative paths of files to copy after all others, since their presence tells readers that the
                directory is complete.
        """
        for relative in sorted(files_below(local_dir), key=lambda name: name in last):
            self.put_file(os.path.join(local_dir, relative), self.join(url, relative))

    def get_dir(self, url: str, local_dir: str) -> None:
        """Copy a directory with its subdirectories to `local_dir`.

        Raises:
            FileNotFoundError: The directory is missing.
        """
        if not self.exists(url):
            raise FileNotFoundError(errno.ENOENT, "No such directory", url)
        os.makedirs(local_dir, exist_ok=True)
        for relative in self._call(url, lambda files, path: files.below(path)):
            self.get_file(self.join(url, relative), os.path.join(local_dir, relative))

    def list_dir(self, url: str) -> list[str]:
        """Return the base names of the files and directories in `url`, sorted; empty if it is missing."""
        return sorted(self._entries(url))

    def sizes(self, url: str) -> dict[str, int]:
        """Return the sizes in bytes of the files in `url` by base name; empty if it is missing."""
        return {name: size for name, size in self._entries(url).items() if size is not None}

    def _entries(self, url: str) -> dict[str, int | None]:
        try:
            return self._call(url, lambda files, path: files.entries(path))
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def glob(self, url: str, pattern: str) -> list[str]:
        """Return the URLs below `url` that match `pattern`, sorted.

        Args:
            url: The directory to search.
            pattern: `fnmatch` patterns, one per level: ``eval*/*.tfevents.*``.
        """
        found = [url]
        for part in pattern.split("/"):
            found = [self.join(at, name) for at in found for name in fnmatch.filter(self.list_dir(at), part)]
        return found

    def exists(self, url: str) -> bool:
        """Whether `url` is an existing file or directory."""
        return self._call(url, lambda files, path: files.exists(path))

    def is_file(self, url: str) -> bool:
        """Whether `url` is an existing file, not a directory."""
        return self._call(url, lambda files, path: files.is_file(path))

    def size(self, url: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            FileNotFoundError: The file is missing.
        """
        return self._call(url, lambda files, path: files.size(path))

    def describe(self, url: str) -> dict[str, Mapping[str, Any]]:
        """Return the store's attributes (size, entity tag, time) of each file below a directory, by relative path.

        A file has the relative path ''.

        Raises:
            FileNotFoundError: `url` is missing.
        """
        return self._call(url, lambda files, path: files.describe(path))

    def remove(self, url: str) -> None:
        """Delete a file if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._call(url, lambda files, path: files.remove(path))

    def remove_dir(self, url: str) -> None:
        """Delete a directory with its content if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._call(url, lambda files, path: files.remove_dir(path))

    def remove_stale_temporaries(self, url: str, older_than_secs: float) -> None:
        """Delete the temporary files that interrupted writes left in `url`."""
        self._call(url, lambda files, path: files.remove_stale_temporaries(path, older_than_secs))

    def make_dir(self, url: str) -> None:
        """Create a directory and its parents, where the store has directories.

        Raises:
            FileNotFoundError: The bucket is missing; it is not created.
        """
        self._call(url, lambda files, path: files.make_dir(path))

    def _call(self, url: str, operation: Callable[[_Files, str], T]) -> T:
        files, path = self._locate(url)

        def attempt() -> T:
            with files.lock:
                return operation(files, path)

        return retrying(attempt, files.is_transient, self.redacted)

    def _locate(self, url: str) -> tuple[_Files, str]:
        """Return the store of `url`, and the path of the file in it."""
        path = self.local_path(url)
        if path is not None:
            return LocalFiles(), path
        return open_remote(url, self.storage_options or {})


class _Files(Protocol):
    """One store, addressed by path.

    Attributes:
        range_bytes: Size of the ranges in which a file is read.
        threads: Maximum number of ranges of a file to read concurrently.
        lock: Held during each operation.
    """

    @property
    def range_bytes(self) -> int: ...

    @property
    def threads(self) -> int: ...

    @property
    def lock(self) -> contextlib.AbstractContextManager[Any]: ...

    def is_transient(self, error: Exception) -> bool: ...

    def read(self, path: str) -> bytes: ...

    def read_range(self, path: str, start: int, end: int) -> bytes: ...

    def write(self, path: str, data: bytes, durable: bool) -> None: ...

    def create(self, path: str, data: bytes) -> None: ...

    def put(self, local_path: str, path: str, move: bool) -> None: ...

    def get(self, path: str, local_path: str) -> None: ...

    def entries(self, path: str) -> dict[str, int | None]:
        """Sizes by name; None for a directory."""

    def below(self, path: str) -> list[str]: ...

    def exists(self, path: str) -> bool: ...

    def is_file(self, path: str) -> bool: ...

    def size(self, path: str) -> int: ...

    def describe(self, path: str) -> dict[str, Mapping[str, Any]]: ...

    def remove(self, path: str) -> None: ...

    def remove_dir(self, path: str) -> None: ...

    def remove_stale_temporaries(self, path: str, older_than_secs: float) -> None: ...

    def make_dir(self, path: str) -> None: ...


def _map_in_order(function: Callable[[A], T], arguments: Iterable[A], threads: int) -> Iterator[T]:
    """Yield the results of `function` in the order of `arguments`; at most `threads` calls run ahead."""
    if threads == 1:
        yield from map(function, arguments)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="download")
    pending: deque[Future[T]] = deque()
    try:
        for argument in arguments:
            if len(pending) == threads:
                yield pending.popleft().result()
            pending.append(pool.submit(function, argument))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _require_length(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise OSError(errno.EREMOTEIO, f"Expected {length} bytes, got {len(data)}")
    return data
