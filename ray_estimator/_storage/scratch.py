"""Local directories that are deleted when their owner closes them, or found dead.

The owner holds a lock on a file inside. The kernel releases it when the process ends, so the next process can tell
abandoned directories without clocks or process ids.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator

from ray_estimator._storage.locks import LockFile

_LOCK = ".lock"


@contextlib.contextmanager
def scratch_dir(parent: str, prefix: str) -> Iterator[str]:
    """Yield a new directory in `parent`, deleted at the end. Abandoned ones with the same prefix are deleted first."""
    os.makedirs(parent, exist_ok=True)
    _delete_abandoned(parent, prefix)
    # Renamed to the prefix only once it is locked: a directory with the prefix and without a lock is abandoned.
    new = tempfile.mkdtemp(prefix=".new-", dir=parent)
    directory = os.path.join(parent, f"{prefix}{uuid.uuid4().hex}")
    with LockFile(os.path.join(new, _LOCK), create=True) as lock:
        try:
            # Where locks are unsupported, no process can find the directory abandoned.
            with contextlib.suppress(OSError):
                lock.try_exclusive()
            os.rename(new, directory)
            yield directory
        finally:
            for path in (new, directory):
                shutil.rmtree(path, ignore_errors=True)


def _delete_abandoned(parent: str, prefix: str) -> None:
    for name in os.listdir(parent):
        if name.startswith(prefix):
            directory = os.path.join(parent, name)
            # Another user's directory, one that is just being deleted, or no support of locks: it stays.
            with contextlib.suppress(OSError), LockFile(os.path.join(directory, _LOCK), create=False) as lock:
                if lock.try_exclusive():
                    shutil.rmtree(directory, ignore_errors=True)
