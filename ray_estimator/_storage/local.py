"""Local files, written atomically and durably with fsync, renames and hard links."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from ray_estimator._storage.retry import is_transient_locally

_TEMPORARY = re.compile(r"\..+\.tmp-[0-9a-f]{32}")


class LocalFiles:
    """Files of the operating system. Missing parent directories are created, as on stores without directories."""

    range_bytes = 8 * 2**20
    threads = 1
    lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def is_transient(self, error: Exception) -> bool:
        return is_transient_locally(error)

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def read_range(self, path: str, start: int, end: int) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def write(self, path: str, data: bytes, durable: bool) -> None:
        with _replacing(path) as temporary:
            _write_new(temporary, data, durable)
        if durable:
            _sync_directory(os.path.dirname(path))

    def create(self, path: str, data: bytes) -> None:
        with _creating(path) as temporary:
            _write_new(temporary, data, True)
        _sync_directory(os.path.dirname(path))

    def put(self, local_path: str, path: str, move: bool) -> None:
        if move and _rename(local_path, path):
            return
        with _replacing(path) as temporary:
            shutil.copyfile(local_path, temporary)
            _sync(temporary)

    def get(self, path: str, local_path: str) -> None:
        shutil.copyfile(path, local_path)

    def entries(self, path: str) -> dict[str, int | None]:
        found = {}
        with os.scandir(path) as entries:
            for entry in entries:
                # Another process may delete it concurrently; the target of a broken link is missing too.
                with contextlib.suppress(FileNotFoundError):
                    found[entry.name] = None if entry.is_dir() else entry.stat().st_size
        return found

    def below(self, path: str) -> list[str]:
        return files_below(path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def is_file(self, path: str) -> bool:
        return os.path.isfile(path)

    def size(self, path: str) -> int:
        return os.path.getsize(path)

    def describe(self, path: str) -> dict[str, Mapping[str, Any]]:
        names = files_below(path) if os.path.isdir(path) else [""]
        found = {name: os.stat(os.path.join(path, name) if name else path) for name in names}
        return {name: {"size": stat.st_size, "mtime": stat.st_mtime_ns} for name, stat in found.items()}

    def remove(self, path: str) -> None:
        os.remove(path)

    def remove_dir(self, path: str) -> None:
        shutil.rmtree(path)

    def remove_stale_temporaries(self, path: str, older_than_secs: float) -> None:
        with os.scandir(path) as entries:
            for entry in entries:
                if _TEMPORARY.fullmatch(entry.name):
                    # Its owner may rename it concurrently.
                    with contextlib.suppress(FileNotFoundError):
                        if time.time() - entry.stat().st_mtime > older_than_secs:
                            os.remove(entry.path)

    def make_dir(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    """Yield a temporary path next to `path`; it is renamed to `path` at the end, and deleted after an error."""
    make_parent(path)
    temporary = _temporary_next_to(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


@contextlib.contextmanager
def _creating(path: str) -> Iterator[str]:
    """Yield a temporary path next to `path`; it becomes `path` at the end, unless that exists.

    Raises:
        FileExistsError: `path` exists.
    """
    make_parent(path)
    temporary = _temporary_next_to(path)
    try:
        yield temporary
        # Unlike a rename, a link never replaces a file.
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def _write_new(path: str, data: bytes, durable: bool) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _temporary_next_to(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.tmp-{uuid.uuid4().hex}")


def _rename(source: str, path: str) -> bool:
    """Rename `source` to `path`; False if they are on different file systems."""
    make_parent(path)
    _sync(source)
    try:
        os.replace(source, path)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    return True


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_directory(directory: str) -> None:
    """Make a rename durable, on file systems that support it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_parent(path: str) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)


def files_below(directory: str) -> list[str]:
    """Return the relative paths of all files below a local directory, sorted."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), directory)
        for parent, _, names in os.walk(directory)
        for name in names
    )
