"""Local directories that go when their owner is done with them, or dead.

The owner holds a lock on a file inside, which the operating system lets go when the process ends, however it ends. So
whoever comes next finds out what nobody owns any more, without clocks and process numbers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator

_LOCK = ".lock"


@contextlib.contextmanager
def scratch_dir(parent: str, prefix: str) -> Iterator[str]:
    """A new directory in `parent`, which goes at the end. Those of dead owners with the same prefix go at once."""
    os.makedirs(parent, exist_ok=True)
    _sweep(parent, prefix)
    # Made under another name, since it has that of an owned one only when it has its owner.
    new = tempfile.mkdtemp(prefix=".new-", dir=parent)
    directory = os.path.join(parent, f"{prefix}{uuid.uuid4().hex}")
    with open(os.path.join(new, _LOCK), "wb") as lock:
        try:
            # File systems without locks have no sweepers either.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(new, directory)
            yield directory
        finally:
            for path in (new, directory):
                shutil.rmtree(path, ignore_errors=True)


def _sweep(parent: str, prefix: str) -> None:
    for name in os.listdir(parent):
        if name.startswith(prefix):
            _remove_unless_owned(os.path.join(parent, name))


def _remove_unless_owned(directory: str) -> None:
    # Another user's directory, one that goes just now, or a file system without locks: then it stays.
    with contextlib.suppress(OSError), open(os.path.join(directory, _LOCK), "rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
