"""Local copies that the processes of a node share while they read them.

    <temporary folder>/ray-estimator-copies-<user>/
      <key>          a directory, there only when it is complete
      <key>.lock     held shared by who reads it, alone by who fills or removes it

The last to leave removes the copy; what the dead have left is removed by whoever leaves next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO

_WAIT_SECS = 600.0
_LOOK_SECS = 0.1

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def shared_copy(key: str, fill: Callable[[str], None]) -> Iterator[str]:
    """A directory that `fill` has filled, to be read; filled once for all who are in here at the same time.

    Args:
        key: Names the content: letters and digits.
        fill: Fills the empty directory that it is given. Its errors are raised here, and leave nothing behind.
    """
    copy = os.path.join(_parent(), key)
    lock = _enter(copy, fill)
    if lock is not None:
        try:
            yield copy
        finally:
            lock.close()
            _sweep(os.path.dirname(copy))
        return
    # Sharing is thrift, no more.
    logger.warning("Another process of this node has been fetching for %g s: fetching here, too.", _WAIT_SECS)
    with tempfile.TemporaryDirectory(prefix="ray-estimator-") as own:
        fill(own)
        yield own


def _enter(copy: str, fill: Callable[[str], None]) -> IO[bytes] | None:
    """The shared lock of a copy that is complete; None if another process takes too long to fill it."""
    deadline = time.monotonic() + _WAIT_SECS
    while time.monotonic() < deadline:
        lock = open(f"{copy}.lock", "ab")  # noqa: SIM115
        try:
            if _joins(lock, copy, fill):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()
        time.sleep(_LOOK_SECS)
    return None


def _joins(lock: IO[bytes], copy: str, fill: Callable[[str], None]) -> bool:
    if not _take(lock, fcntl.LOCK_SH) or not _is_current(lock):
        return False
    if not os.path.exists(copy) and _take(lock, fcntl.LOCK_EX) and _is_current(lock) and not os.path.exists(copy):
        _fill(copy, fill)
    # From alone to shared is not one act: the copy may have been removed in between.
    return _take(lock, fcntl.LOCK_SH) and _is_current(lock) and os.path.exists(copy)


def _take(lock: IO[bytes], kind: int) -> bool:
    """Takes the lock, or turns it into one of another kind; False if it is taken, and then it is lost."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_current(lock: IO[bytes]) -> bool:
    """Whether the lock's file is still the one that others open."""
    try:
        return os.path.samestat(os.stat(lock.name), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False


def _fill(copy: str, fill: Callable[[str], None]) -> None:
    partial = f"{copy}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.mkdir(partial)
    try:
        fill(partial)
        os.rename(partial, copy)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(parent: str) -> None:
    """Removes the copies that nobody reads."""
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if name.endswith(".lock"):
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as lock:
                if _take(lock, fcntl.LOCK_EX) and _is_current(lock):
                    copy = path.removesuffix(".lock")
                    shutil.rmtree(f"{copy}.partial", ignore_errors=True)
                    shutil.rmtree(copy, ignore_errors=True)
                    os.remove(path)


def _parent() -> str:
    """This user's folder for copies, which nobody else may write to."""
    folder = os.path.join(tempfile.gettempdir(), f"ray-estimator-copies-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.stat(folder).st_uid != os.getuid():
        raise PermissionError(
            errno.EPERM, "The folder for copies belongs to another user: set TMPDIR to one of your own", folder
        )
    return folder
