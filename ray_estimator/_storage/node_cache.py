"""Local copies that the processes of a node share while they read them.

    <temporary folder>/ray-estimator-copies-<user>/
      <key>          a complete directory
      <key>.partial  a directory that is being filled
      <key>.lock     held shared by readers, exclusively by the process that fills or deletes the directory

The last reader deletes the copy. Copies of killed readers are deleted when any other reader finishes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator

from ray_estimator._storage.locks import POLL_SECS, WAIT_SECS, LockFile, user_dir

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def shared_copy(key: str, fill: Callable[[str], None]) -> Iterator[str]:
    """Yield a directory that `fill` has filled, once for all processes of the node that read it concurrently.

    Args:
        key: Identifies the content: letters and digits.
        fill: Fills the empty directory passed to it. Its errors are raised here and leave no files.
    """
    copy = os.path.join(user_dir("copies"), key)
    lock = _open(copy, fill)
    if lock is not None:
        try:
            yield copy
        finally:
            lock.close()
            _delete_unused(os.path.dirname(copy))
        return
    logger.warning("Another process on this node has been downloading for %g s; downloading a second copy.", WAIT_SECS)
    with tempfile.TemporaryDirectory(prefix="ray-estimator-") as own:
        fill(own)
        yield own


def _open(copy: str, fill: Callable[[str], None]) -> LockFile | None:
    """Return the shared lock of the complete copy; None if another process takes too long to fill it."""
    deadline = time.monotonic() + WAIT_SECS
    while time.monotonic() < deadline:
        lock = LockFile(f"{copy}.lock", create=True)
        try:
            if _try_open(lock, copy, fill):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()
        time.sleep(POLL_SECS)
    return None


def _try_open(lock: LockFile, copy: str, fill: Callable[[str], None]) -> bool:
    if not lock.try_shared() or not lock.is_current():
        return False
    if not os.path.exists(copy) and lock.try_exclusive() and lock.is_current() and not os.path.exists(copy):
        _fill(copy, fill)
    # Converting the lock is not atomic: the copy may have been deleted in between.
    return lock.try_shared() and lock.is_current() and os.path.exists(copy)


def _fill(copy: str, fill: Callable[[str], None]) -> None:
    partial = f"{copy}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.mkdir(partial)
    try:
        fill(partial)
        os.rename(partial, copy)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _delete_unused(parent: str) -> None:
    """Delete the copies that no process reads or fills."""
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if name.endswith(".lock"):
            with contextlib.suppress(FileNotFoundError), LockFile(path, create=False) as lock:
                if lock.try_exclusive() and lock.is_current():
                    copy = path.removesuffix(".lock")
                    shutil.rmtree(f"{copy}.partial", ignore_errors=True)
                    shutil.rmtree(copy, ignore_errors=True)
                    os.remove(path)
