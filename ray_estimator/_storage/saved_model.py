"""Exports around their graph: what is checked on the driver before, and how a SavedModel is published after.

Importing this module imports neither TensorFlow nor Ray.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping

from ray_estimator._storage.storage import Storage

"""The modes of an export, in order. The first of them saves the variables: training's are all that others need."""

_TRIES = 10
_GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt")

logger = logging.getLogger(__name__)


# Before


# After


@contextlib.contextmanager
def staging_dir(storage: Storage, base: str) -> Iterator[str]:
    """A local folder, gone at the end; on the file system of `base` if that is local, so that a rename publishes.

    Its name is none that loaders look at: they take directories that are named by a number.
    """
    local = storage.local_path(base)
    if local is not None:
        os.makedirs(local, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="temp-", dir=local) as folder:
        yield folder


def copy_assets(storage: Storage, assets: Mapping[str, str], saved_model: str) -> None:
    """Copies each source to its destination below ``assets.extra``."""
    for destination, source in assets.items():
        storage.get_file(source, os.path.join(saved_model, "assets.extra", destination))


def publish(storage: Storage, saved_model: str, base: str) -> str:
    """Gives the local folder `saved_model` a directory of its own below `base`, named by the seconds since 1970.

    On a local disk it appears whole, by one rename. A store has no rename: there its graph arrives last, so that
    whoever finds a graph finds all that belongs to it, and after an error nothing stays.

    Returns:
        The path or URL of the new directory.

    Raises:
        RuntimeError: Others took every name that was tried.
    """
    take = _renamed if storage.local_path(base) is not None else _uploaded
    for _ in range(_TRIES):
        name = str(int(time.time()))
        if take(storage, saved_model, base, name):
            return storage.join(base, name)
        logger.warning("%s is taken by another export; trying again with a later name.", storage.join(base, name))
        time.sleep(1)
    raise RuntimeError(f"Failed to obtain a unique export directory name under {base} after {_TRIES} attempts.")


def _renamed(storage: Storage, saved_model: str, base: str, name: str) -> bool:
    try:
        os.rename(saved_model, storage.join(base, name))
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True


def _uploaded(storage: Storage, saved_model: str, base: str, name: str) -> bool:
    # The claim lies beside the directory, which must not be seen before it holds a model.
    claim = storage.join(base, f"temp-{name}")
    if not _claimed(storage, claim):
        return False
    try:
        url = storage.join(base, name)
        if storage.exists(url):
            return False
        _upload(storage, saved_model, url)
        return True
    finally:
        _try_to(Storage.remove, storage, claim)


def _claimed(storage: Storage, claim: str) -> bool:
    token = uuid.uuid4().bytes
    try:
        storage.create_bytes(claim, token)
    except FileExistsError:
        # Perhaps by this very call, whose first answer was lost.
        with contextlib.suppress(FileNotFoundError):
            return storage.read_bytes(claim) == token
        return False
    return True


def _upload(storage: Storage, saved_model: str, url: str) -> None:
    try:
        storage.put_dir(saved_model, url, last=_GRAPH_FILES)
    except BaseException:
        _try_to(remove, storage, url)
        raise


def remove(storage: Storage, url: str) -> None:
    """Removes a SavedModel, if it is there: its graph first, so that nobody loads what is half gone."""
    for name in _GRAPH_FILES:
        storage.remove(storage.join(url, name))
    storage.remove_dir(url)


def _try_to(clean_up: Callable[[Storage, str], None], storage: Storage, url: str) -> None:
    """Removes what is in nobody's way, if the store lets it: what matters has happened already."""
    try:
        clean_up(storage, url)
    except Exception:
        logger.warning("Could not remove %s.", url, exc_info=True)
