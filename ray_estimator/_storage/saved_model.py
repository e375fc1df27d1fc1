"""Publish SavedModels in a directory that serving processes watch."""

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

_ATTEMPTS = 10
_GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def staging_dir(storage: Storage, base: str) -> Iterator[str]:
    """Yield a local folder, deleted at the end; on the file system of `base` if that is local, to publish by a rename.

    Its name is not a number, so loaders ignore it.
    """
    local = storage.local_path(base)
    if local is not None:
        os.makedirs(local, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="temp-", dir=local) as folder:
        yield folder


def copy_assets(storage: Storage, assets: Mapping[str, str], saved_model: str) -> None:
    """Copy each source to its destination below ``assets.extra``."""
    for destination, source in assets.items():
        storage.get_file(source, os.path.join(saved_model, "assets.extra", destination))


def publish(storage: Storage, saved_model: str, base: str) -> str:
    """Publish the local folder `saved_model` as a new directory below `base`, named by the seconds since the epoch.

    On a local disk it appears atomically, by a rename. On other stores the graph is uploaded last, so that a directory
    with a graph is complete; after an error all files are deleted.

    Returns:
        The path or URL of the new directory.

    Raises:
        RuntimeError: Every name tried was taken by another export.
    """
    put = _rename if storage.local_path(base) is not None else _upload
    for _ in range(_ATTEMPTS):
        name = str(int(time.time()))
        if put(storage, saved_model, base, name):
            return storage.join(base, name)
        logger.warning("%s is taken by another export; retrying with a later name.", storage.join(base, name))
        time.sleep(1)
    raise RuntimeError(f"Failed to obtain a unique export directory name under {base} after {_ATTEMPTS} attempts.")


def _rename(storage: Storage, saved_model: str, base: str, name: str) -> bool:
    try:
        os.rename(saved_model, storage.join(base, name))
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True


def _upload(storage: Storage, saved_model: str, base: str, name: str) -> bool:
    # The claim is a file next to the directory, which must not exist before it contains a model.
    claim = storage.join(base, f"temp-{name}")
    if not _claim(storage, claim):
        return False
    try:
        url = storage.join(base, name)
        if storage.exists(url):
            return False
        _put_complete(storage, saved_model, url)
        return True
    finally:
        _try_to(Storage.remove, storage, claim)


def _claim(storage: Storage, url: str) -> bool:
    token = uuid.uuid4().bytes
    try:
        storage.create_bytes(url, token)
    except FileExistsError:
        # Possibly created by this call, whose first response was lost.
        with contextlib.suppress(FileNotFoundError):
            return storage.read_bytes(url) == token
        return False
    return True


def _put_complete(storage: Storage, saved_model: str, url: str) -> None:
    try:
        storage.put_dir(saved_model, url, last=_GRAPH_FILES)
    except BaseException:
        _try_to(remove, storage, url)
        raise


def remove(storage: Storage, url: str) -> None:
    """Delete a SavedModel if it exists: its graph first, so that no process loads a partial model."""
    for name in _GRAPH_FILES:
        storage.remove(storage.join(url, name))
    storage.remove_dir(url)


def _try_to(clean_up: Callable[[Storage, str], None], storage: Storage, url: str) -> None:
    """Call `clean_up`, and log its error: leftover files are harmless."""
    try:
        clean_up(storage, url)
    except Exception:  # Depends on the store.
        logger.warning("Could not delete %s.", url, exc_info=True)
