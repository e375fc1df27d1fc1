"""Locks between the processes of a host. The kernel releases them when their holder ends, also after a SIGKILL.

`exclusive_lock` uses filelock's `FileLock`. `LockFile` calls flock directly, for what filelock does not offer: a shared
lock whose file may be deleted while others wait for it (`ReadWriteLock` needs an SQLite database instead), and a lock
that survives a rename of its file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from types import TracebackType

from filelock import FileLock, Timeout

POLL_SECS = 0.1
WAIT_SECS = 600.0
"""How long a process waits for another one that fetches the same content, before it fetches a copy of its own."""


@contextlib.contextmanager
def exclusive_lock(path: str, timeout_secs: float) -> Iterator[bool]:
    """Hold the exclusive lock of the file `path`; yields False, without the lock, after the timeout."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout_secs, poll_interval=POLL_SECS)
    except Timeout:
        is_held = False
    else:
        is_held = True
    try:
        yield is_held
    finally:
        if is_held:
            lock.release()


class LockFile:
    """An open file that can be locked, shared or exclusively. Closing it releases the lock.

    Args:
        path: The file.
        create: Whether to create it if it is missing.

    Raises:
        FileNotFoundError: It is missing and not created.
    """

    def __init__(self, path: str, *, create: bool) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)

    def __enter__(self) -> LockFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)

    def try_shared(self) -> bool:
        """Lock or convert to shared; False if another holds it exclusively. A failed conversion loses the lock."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Lock or convert to exclusive; False if another holds it. A failed conversion loses the lock."""
        return self._try(fcntl.LOCK_EX)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_current(self) -> bool:
        """Whether the path still leads to this file, rather than to none or a later one."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False


def user_dir(name: str) -> str:
    """Return the temporary folder ``ray-estimator-<name>-<user>``, writable by this user only; created if needed.

    Raises:
        PermissionError: It belongs to another user.
    """
    folder = os.path.join(tempfile.gettempdir(), f"ray-estimator-{name}-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.stat(folder).st_uid != os.getuid():
        raise PermissionError(
            errno.EPERM, "The folder for temporary files belongs to another user; set TMPDIR to your own", folder
        )
    return folder
