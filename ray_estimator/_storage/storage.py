"""Files on any store: a local directory, or whatever fsspec opens.

Everything else names files by URL, a `str`: a local path, `file://...`, `memory://...`, `s3://...` and so on. Local
files go through the operating system, which offers what a commit needs (fsync, atomic rename); all others go
through fsspec, where one put makes one object, and readers see all of an object or none of it.
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
_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Storage:
    """The files that a run reads and writes.

    A value without open connections: it pickles, and works alike on the driver, on workers and in tasks. Errors of
    the store are raised as they are; a missing file is a `FileNotFoundError` on every store.

    Attributes:
        storage_options: What fsspec gets beside a remote URL (credentials, endpoints). Local files ignore it.
    """

    storage_options: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage_options", dict(self.storage_options or {}))

    def __repr__(self) -> str:
        # Names only: the values may be credentials.
        return f"Storage(storage_options=<{', '.join(sorted(self.storage_options or {}))}>)"

    def normalize(self, url: str) -> str:
        """The one spelling of `url`: an absolute local path, or a URL without a trailing slash.

        Raises:
            ValueError: `url` is empty.
        """
        if not url:
            raise ValueError("Expected a local path or a URL, but received an empty string.")
        path = self.local_path(url)
        if path is not None:
            return path
        scheme, _, rest = url.partition("://")
        return f"{scheme}://{rest.rstrip('/')}"

    def local_path(self, url: str) -> str | None:
        """The absolute path of a local file or directory; None if `url` is not local."""
        scheme, separator, rest = url.partition("://")
        if not separator:
            return os.path.abspath(os.path.expanduser(url))
        return os.path.abspath(rest) if scheme in _LOCAL_SCHEMES else None

    def join(self, url: str, *names: str) -> str:
        """The URL of what `names` lead to below `url`."""
        return (url if url.endswith("/") else url + "/") + "/".join(names)

    def redacted(self, text: str) -> str:
        """`text` without credentials: those in `storage_options`, and those in URLs."""
        for secret in sorted(secrets_in(self.storage_options or {}), key=len, reverse=True):
            text = text.replace(secret, "<redacted>")
        return USER_IN_URL.sub(r"\1<redacted>@", text)

    def read_bytes(self, url: str) -> bytes:
        """The whole content of a file.

        Raises:
            FileNotFoundError: There is no such file.
        """
        return self._ask(url, lambda files, path: files.read(path))

    def read_chunks(self, url: str, size: int | None = None) -> Iterator[bytes]:
        """The content of a file in order, in parts of at most 8 MiB; of a remote file several are on their way at once.

        Args:
            url: The file.
            size: How many bytes it has, if the caller knows; no more are read.

        Raises:
            FileNotFoundError: There is no such file.
        """
        files, _ = self._locate(url)
        size = self.size(url) if size is None else size

        def read(start: int) -> bytes:
            end = min(start + _CHUNK_BYTES, size)
            return self._ask(url, lambda files, path: _require_length(files.read_range(path, start, end), end - start))

        return _in_order(read, range(0, size, _CHUNK_BYTES), files.threads)

    def write_bytes(self, url: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace a file. Readers see the old content or the new, never a part.

        Args:
            url: The file.
            data: Its content.
            durable: Whether it, and all that was put into its directory before, is to survive a loss of power.
        """
        self._ask(url, lambda files, path: files.write(path, data, durable))

    def create_bytes(self, url: str, data: bytes) -> None:
        """Create a file that must not be there yet. Readers see all of its content or no file.

        Of several callers at once exactly one succeeds where the store enforces it: local files, the memory of this
        process, S3 and Azure (a conditional put) and Google Cloud Storage (a generation match). Elsewhere, SFTP for
        one, callers that come at the same moment may all succeed, and the last one's content stays.

        After an answer that was lost on its way, the file may be there with the caller's own content although this
        raised: who needs to know reads it back.

        Raises:
            FileExistsError: There is a file.
        """
        self._ask(url, lambda files, path: files.create(path, data))

    def put_file(self, local_path: str, url: str, *, move: bool = False) -> None:
        """Create or replace the file `url` with the content of `local_path`, as atomically as `write_bytes`.

        To survive a loss of power it needs a durable `write_bytes` into its directory after it.

        Args:
            local_path: The file to copy.
            url: Where to.
            move: The caller needs `local_path` no more, so it may be renamed where that saves a copy.
        """
        self._ask(url, lambda files, path: files.put(local_path, path, move))

    def get_file(self, url: str, local_path: str) -> None:
        """Copy a file to `local_path`, whose directory is made if need be.

        Raises:
            FileNotFoundError: There is no such file.
        """
        make_parent(local_path)
        self._ask(url, lambda files, path: files.get(path, local_path))

    def put_dir(self, local_dir: str, url: str, *, last: Sequence[str] = ()) -> None:
        """Copy the files below `local_dir`, each to its own relative place below `url`.

        Args:
            local_dir: The directory to copy.
            url: Where to.
            last: Files, relative to it, that come after all others: those by which readers know that all is there.
        """
        for relative in sorted(files_below(local_dir), key=lambda name: name in last):
            self.put_file(os.path.join(local_dir, relative), self.join(url, relative))

    def get_dir(self, url: str, local_dir: str) -> None:
        """Copy the files below `url`, each to its own relative place below `local_dir`.

        Raises:
            FileNotFoundError: There is no such directory.
        """
        if not self.exists(url):
            raise FileNotFoundError(errno.ENOENT, "No such directory", url)
        os.makedirs(local_dir, exist_ok=True)
        for relative in self._ask(url, lambda files, path: files.below(path)):
            self.get_file(self.join(url, relative), os.path.join(local_dir, relative))

    def list_dir(self, url: str) -> list[str]:
        """Base names of the files and directories in `url`, sorted; empty if there is no such directory."""
        return sorted(self._entries(url))

    def sizes(self, url: str) -> dict[str, int]:
        """Sizes in bytes of the files in `url`, by base name; empty if there is no such directory."""
        return {name: size for name, size in self._entries(url).items() if size is not None}

    def _entries(self, url: str) -> dict[str, int | None]:
        try:
            return self._ask(url, lambda files, path: files.entries(path))
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def glob(self, url: str, pattern: str) -> list[str]:
        """URLs of what is below `url` and fits `pattern`, sorted.

        Args:
            url: Where to begin.
            pattern: Names with wildcards as `fnmatch` knows them, one for each level: ``eval*/*.tfevents.*``.
        """
        found = [url]
        for part in pattern.split("/"):
            found = [self.join(at, name) for at in found for name in fnmatch.filter(self.list_dir(at), part)]
        return found

    def exists(self, url: str) -> bool:
        """Whether there is a file or a directory at `url`."""
        return self._ask(url, lambda files, path: files.exists(path))

    def is_file(self, url: str) -> bool:
        """Whether there is a file, and no directory, at `url`."""
        return self._ask(url, lambda files, path: files.is_file(path))

    def size(self, url: str) -> int:
        """Size of a file in bytes.

        Raises:
            FileNotFoundError: There is no such file.
        """
        return self._ask(url, lambda files, path: files.size(path))

    def describe(self, url: str) -> dict[str, Mapping[str, Any]]:
        """What the store says of a file (size, entity tag, time), by the name ''; of a directory, of each file below.

        Raises:
            FileNotFoundError: There is nothing at `url`.
        """
        return self._ask(url, lambda files, path: files.describe(path))

    def remove(self, url: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(url, lambda files, path: files.remove(path))

    def remove_dir(self, url: str) -> None:
        """Delete a directory and all below it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(url, lambda files, path: files.remove_dir(path))

    def remove_stale_temporaries(self, url: str, older_than_secs: float) -> None:
        """Delete what writes to files in `url` left behind when they were cut off, where they leave anything."""
        self._ask(url, lambda files, path: files.remove_stale_temporaries(path, older_than_secs))

    def make_dir(self, url: str) -> None:
        """Make a directory and its parents, where the store has directories.

        Raises:
            FileNotFoundError: The store has no such bucket; none is made.
        """
        self._ask(url, lambda files, path: files.make_dir(path))

    def _ask(self, url: str, ask: Callable[[_Files, str], T]) -> T:
        files, path = self._locate(url)

        def ask_once() -> T:
            with files.turn:
                return ask(files, path)

        return retrying(ask_once, files.is_transient, self.redacted)

    def _locate(self, url: str) -> tuple[_Files, str]:
        """Who serves `url`, and the path by which it knows the file."""
        path = self.local_path(url)
        if path is not None:
            return LocalFiles(), path
        return open_remote(url, self.storage_options or {})


class _Files(Protocol):
    """One store, addressed by path.

    Attributes:
        threads: How many ranges of a file may be read at once.
        turn: Held while the store is used.
    """

    @property
    def threads(self) -> int: ...

    @property
    def turn(self) -> contextlib.AbstractContextManager[Any]: ...

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


def _in_order(function: Callable[[A], T], arguments: Iterable[A], threads: int) -> Iterator[T]:
    """What `function` returns for each of `arguments`, in order; no more than `threads` of them are ahead."""
    if threads == 1:
        yield from map(function, arguments)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reading")
    ahead: deque[Future[T]] = deque()
    try:
        for argument in arguments:
            if len(ahead) == threads:
                yield ahead.popleft().result()
            ahead.append(pool.submit(function, argument))
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _require_length(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise OSError(errno.EREMOTEIO, f"Expected {length} bytes, but received {len(data)}")
    return data
