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
import re
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

_LOCAL_SCHEMES = ("file", "local")
_SECRET = re.compile(r"key|secret|token|passw|credential|sas|connection_string|auth", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(\w://)[^/@\s]+@")
_SHORTEST_SECRET = 4


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

    def redacted(self, text: str) -> str:
        """`text` without credentials: those in `storage_options`, and those in URLs."""
        for secret in sorted(_secrets(self.storage_options or {}), key=len, reverse=True):
            text = text.replace(secret, "<redacted>")
        return _USER_IN_URL.sub(r"\1<redacted>@", text)

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

    def read_bytes(self, url: str) -> bytes:
        """The whole content of a file.

        Raises:
            FileNotFoundError: There is no such file.
        """
        files, path = self._locate(url)
        return files.read(path)

    def write_bytes(self, url: str, data: bytes) -> None:
        """Create or replace a file. Readers see the old content or the new, never a part."""
        files, path = self._locate(url)
        files.write(path, data)

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
        files, path = self._locate(url)
        files.create(path, data)

    def put_file(self, local_path: str, url: str, *, move: bool = False) -> None:
        """Create or replace the file `url` with the content of `local_path`, as atomically as `write_bytes`.

        Args:
            local_path: The file to copy.
            url: Where to.
            move: The caller needs `local_path` no more, so it may be renamed where that saves a copy.
        """
        files, path = self._locate(url)
        files.put(local_path, path, move)

    def get_file(self, url: str, local_path: str) -> None:
        """Copy a file to `local_path`, whose directory is made if need be.

        Raises:
            FileNotFoundError: There is no such file.
        """
        files, path = self._locate(url)
        _make_parent(local_path)
        files.get(path, local_path)

    def put_dir(self, local_dir: str, url: str, *, last: Sequence[str] = ()) -> None:
        """Copy the files below `local_dir`, each to its own relative place below `url`.

        Args:
            local_dir: The directory to copy.
            url: Where to.
            last: Files, relative to it, that come after all others: those by which readers know that all is there.
        """
        for relative in sorted(_files_below(local_dir), key=lambda name: name in last):
            self.put_file(os.path.join(local_dir, relative), self.join(url, relative))

    def get_dir(self, url: str, local_dir: str) -> None:
        """Copy the files below `url`, each to its own relative place below `local_dir`.

        Raises:
            FileNotFoundError: There is no such directory.
        """
        if not self.exists(url):
            raise FileNotFoundError(errno.ENOENT, "No such directory", url)
        os.makedirs(local_dir, exist_ok=True)
        files, path = self._locate(url)
        for relative in files.below(path):
            self.get_file(self.join(url, relative), os.path.join(local_dir, relative))

    def list_dir(self, url: str) -> list[str]:
        """Base names of the files and directories in `url`, sorted; empty if there is no such directory."""
        files, path = self._locate(url)
        try:
            return sorted(files.names(path))
        except (FileNotFoundError, NotADirectoryError):
            return []

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
        files, path = self._locate(url)
        return files.exists(path)

    def is_file(self, url: str) -> bool:
        """Whether there is a file, and no directory, at `url`."""
        files, path = self._locate(url)
        return files.is_file(path)

    def size(self, url: str) -> int:
        """Size of a file in bytes.

        Raises:
            FileNotFoundError: There is no such file.
        """
        files, path = self._locate(url)
        return files.size(path)

    def describe(self, url: str) -> dict[str, Mapping[str, Any]]:
        """What the store says of a file (size, entity tag, time), by the name ''; of a directory, of each file below.

        Raises:
            FileNotFoundError: There is nothing at `url`.
        """
        files, path = self._locate(url)
        return files.describe(path)

    def remove(self, url: str) -> None:
        """Delete a file, if it is there."""
        files, path = self._locate(url)
        with contextlib.suppress(FileNotFoundError):
            files.remove(path)

    def remove_dir(self, url: str) -> None:
        """Delete a directory and all below it, if it is there."""
        files, path = self._locate(url)
        with contextlib.suppress(FileNotFoundError):
            files.remove_dir(path)

    def make_dir(self, url: str) -> None:
        """Make a directory and its parents, where the store has directories."""
        files, path = self._locate(url)
        files.make_dir(path)

    def _locate(self, url: str) -> tuple[_Files, str]:
        """Who serves `url`, and the path by which it knows the file."""
        path = self.local_path(url)
        if path is not None:
            return _LocalFiles(), path
        filesystem, path = fsspec.core.url_to_fs(url, **(self.storage_options or {}))
        return (_MemoryFiles if isinstance(filesystem, MemoryFileSystem) else _RemoteFiles)(filesystem), path


class _Files(Protocol):
    """One store, addressed by path."""

    def read(self, path: str) -> bytes: ...

    def write(self, path: str, data: bytes) -> None: ...

    def create(self, path: str, data: bytes) -> None: ...

    def put(self, local_path: str, path: str, move: bool) -> None: ...

    def get(self, path: str, local_path: str) -> None: ...

    def names(self, path: str) -> list[str]: ...

    def below(self, path: str) -> list[str]: ...

    def exists(self, path: str) -> bool: ...

    def is_file(self, path: str) -> bool: ...

    def size(self, path: str) -> int: ...

    def describe(self, path: str) -> dict[str, Mapping[str, Any]]: ...

    def remove(self, path: str) -> None: ...

    def remove_dir(self, path: str) -> None: ...

    def make_dir(self, path: str) -> None: ...


class _LocalFiles:
    """Files of the operating system. Missing parents are made, since no other store knows the lack of one."""

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def write(self, path: str, data: bytes) -> None:
        with _replacing(path) as temporary, open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def create(self, path: str, data: bytes) -> None:
        with _creating(path) as temporary, open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def put(self, local_path: str, path: str, move: bool) -> None:
        if move and _rename(local_path, path):
            return
        with _replacing(path) as temporary:
            shutil.copyfile(local_path, temporary)
            _sync(temporary)

    def get(self, path: str, local_path: str) -> None:
        shutil.copyfile(path, local_path)

    def names(self, path: str) -> list[str]:
        return os.listdir(path)

    def below(self, path: str) -> list[str]:
        return _files_below(path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def is_file(self, path: str) -> bool:
        return os.path.isfile(path)

    def size(self, path: str) -> int:
        return os.path.getsize(path)

    def describe(self, path: str) -> dict[str, Mapping[str, Any]]:
        names = _files_below(path) if os.path.isdir(path) else [""]
        found = {name: os.stat(os.path.join(path, name) if name else path) for name in names}
        return {name: {"size": stat.st_size, "mtime": stat.st_mtime_ns} for name, stat in found.items()}

    def remove(self, path: str) -> None:
        os.remove(path)

    def remove_dir(self, path: str) -> None:
        shutil.rmtree(path)

    def make_dir(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)


class _RemoteFiles:
    """Files of an fsspec file system."""

    def __init__(self, filesystem: Any) -> None:
        # Others write to the same store: a remembered listing would hide what they did.
        filesystem.invalidate_cache()
        self._filesystem = filesystem

    def read(self, path: str) -> bytes:
        return bytes(self._filesystem.cat_file(path))

    def write(self, path: str, data: bytes) -> None:
        self._filesystem.pipe_file(path, data)

    def create(self, path: str, data: bytes) -> None:
        try:
            self._filesystem.pipe_file(path, data, mode="create")
        except OSError as error:
            # Stores that speak S3 may refuse in words of their own.
            if isinstance(error, FileExistsError) or self.exists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
            raise

    def put(self, local_path: str, path: str, move: bool) -> None:
        self._filesystem.put_file(local_path, path)

    def get(self, path: str, local_path: str) -> None:
        self._filesystem.get_file(path, local_path)

    def names(self, path: str) -> list[str]:
        listed = self._filesystem.ls(path, detail=False)
        # Object stores may hold an empty object that stands for the directory itself.
        entries = {entry.rstrip("/") for entry in listed} - {path.rstrip("/")}
        return [entry.rpartition("/")[2] for entry in entries]

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

    def make_dir(self, path: str) -> None:
        self._filesystem.makedirs(path, exist_ok=True)


class _MemoryFiles(_RemoteFiles):
    """Files of fsspec's `memory://`: objects of this process, whose threads may see each other's halves of a copy."""

    _creating = threading.Lock()

    def create(self, path: str, data: bytes) -> None:
        with self._creating:
            super().create(path, data)

    def put(self, local_path: str, path: str, move: bool) -> None:
        self.write(path, _LocalFiles().read(local_path))

    def get(self, path: str, local_path: str) -> None:
        content = self.read(path)
        with open(local_path, "wb") as file:
            file.write(content)


def _secrets(options: Any, is_secret: bool = False) -> Iterator[str]:
    """The texts in fsspec options that are credentials, by the names of the options."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from _secrets(value, is_secret or _SECRET.search(str(name)) is not None)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _secrets(value, is_secret)
    elif is_secret and isinstance(options, str) and len(options) >= _SHORTEST_SECRET:
        yield options


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    """A name beside `path` to write to, which becomes `path` at the end and is deleted after an error."""
    _make_parent(path)
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.tmp-{uuid.uuid4().hex}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise
    _sync_directory(directory)


@contextlib.contextmanager
def _creating(path: str) -> Iterator[str]:
    """A name beside `path` to write to, which becomes `path` at the end if nothing is there.

    Raises:
        FileExistsError: There is something.
    """
    _make_parent(path)
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.tmp-{uuid.uuid4().hex}")
    try:
        yield temporary
        # Unlike a rename, a link never replaces what is there.
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
    _sync_directory(directory)


def _rename(source: str, path: str) -> bool:
    """Rename `source` to `path`; False if they lie on different file systems."""
    _make_parent(path)
    _sync(source)
    try:
        os.replace(source, path)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    _sync_directory(os.path.dirname(path))
    return True


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_directory(directory: str) -> None:
    """Make a rename durable, on the file systems that offer it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_parent(path: str) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)


def _files_below(directory: str) -> list[str]:
    """Relative paths of all files below a local directory, sorted."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), directory)
        for parent, _, names in os.walk(directory)
        for name in names
    )
