"""`stage()`: local copies of files that user code names by URL.

TensorFlow opens local files only; files of an object store are downloaded first, once per node.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ray_estimator._storage.content_version import version_attributes
from ray_estimator._storage.locks import WAIT_SECS, exclusive_lock, user_dir
from ray_estimator._storage.storage import Storage

T = TypeVar("T")

logger = logging.getLogger(__name__)

_DOWNLOADS = 3


def stage(url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> str:
    """Return a local path with the content of `url`, for TensorFlow to open: vocabularies, TFRecords, assets.

    Call it in model_fn, input_fn or a hook. It runs there, on each worker or task, and downloads the file once per
    node, however many processes ask for it. A file that has changed in its store is downloaded again; paths returned
    earlier keep the old content. It also works on the driver and in process.

    Example:
        >>> def model_fn(features, labels, mode):
        ...     vocabulary = ray_estimator.stage("s3://bucket/vocab.txt")
        ...     table = tf.lookup.StaticVocabularyTable(tf.lookup.TextFileInitializer(vocabulary, ...), 1)

    Args:
        url: A file or directory on any store that fsspec supports. A local path is returned unchanged, and
            ``file://...`` as a local path.
        storage_options: fsspec options such as credentials. None: those of the current run's `RunConfig`, if
            `model_dir` is local or on the same kind of store as `url`; outside a run, fsspec's defaults. Functions
            that tf.data calls in its own threads are outside the run: call `stage` in input_fn itself.

    Returns:
        The path of the local file or directory; its base name is that of `url`. Do not modify the content.

    Raises:
        FileNotFoundError: `url` does not exist, or the local path does not exist on this node.
        OSError: The file kept changing during download.
    """
    named = os.fspath(url)
    options = _options_for(named) if storage_options is None else storage_options
    storage = Storage(options)
    local = storage.local_path(named)
    if local is not None:
        if not os.path.exists(local):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory on this node", named)
        return local if "://" in named else named
    return _Staged(storage, storage.normalize(named)).path()


@contextlib.contextmanager
def staging_for(model_dir: str, storage_options: Mapping[str, Any] | None) -> Iterator[None]:
    """Use the storage options of this run in `stage`, inside the block."""
    token = _current_run.set((model_dir, storage_options))
    try:
        yield
    finally:
        _current_run.reset(token)


def iterating_for(model_dir: str, storage_options: Mapping[str, Any] | None, batches: Generator[T]) -> Generator[T]:
    """Yield from `batches`, whose code runs within `staging_for`; the code of the consumer does not."""
    context = contextvars.copy_context()
    context.run(_current_run.set, (model_dir, storage_options))
    try:
        while True:
            try:
                batch = context.run(next, batches)
            except StopIteration:
                return
            yield batch
    finally:
        context.run(batches.close)


_current_run: contextvars.ContextVar[tuple[str, Mapping[str, Any] | None] | None] = contextvars.ContextVar(
    "current_run", default=None
)


def _options_for(url: str) -> Mapping[str, Any] | None:
    """Return the run's storage options, unless they are for another kind of store, which would reject them."""
    run = _current_run.get()
    if run is None:
        return None
    model_dir, storage_options = run
    scheme = _remote_scheme(model_dir)
    return storage_options if scheme in (None, _remote_scheme(url)) else None


def _remote_scheme(url: str) -> str | None:
    scheme, separator, _ = url.partition("://")
    return scheme if separator and scheme not in ("file", "local") else None


@dataclass(frozen=True)
class _Version:
    """The current content of a URL; `digest` changes with it, as far as the store tells."""

    is_directory: bool
    digest: str

    @classmethod
    def of(cls, described: Mapping[str, Mapping[str, Any]]) -> _Version:
        attributes = sorted((name, version_attributes(info)) for name, info in described.items())
        return cls(set(described) != {""}, hashlib.sha256(repr(attributes).encode()).hexdigest())


@dataclass(frozen=True)
class _Staged:
    """The local copies of one URL."""

    storage: Storage
    url: str

    def path(self) -> str:
        """Return the copy of the current version, downloaded if this node has none."""
        for _ in range(_DOWNLOADS):
            version = self._version()
            copy = os.path.join(self._folder(), version.digest[:16], self.url.rpartition("/")[2])
            if os.path.exists(copy):
                return copy
            with self._download_lock():
                if os.path.exists(copy) or self._download(version, copy):
                    return copy
        raise OSError(errno.EAGAIN, f"File kept changing during download ({_DOWNLOADS} attempts)", self.url)

    def _version(self) -> _Version:
        try:
            return _Version.of(self.storage.describe(self.url))
        except FileNotFoundError as error:
            # Some stores also answer this without read access.
            raise FileNotFoundError(
                errno.ENOENT, "No such file or directory, or no access with these storage_options", self.url
            ) from error

    def _folder(self) -> str:
        return os.path.join(user_dir("staged"), hashlib.sha256(self.url.encode()).hexdigest()[:16])

    def _download(self, version: _Version, copy: str) -> bool:
        """Download `version` atomically; False if the store has another version by now."""
        os.makedirs(self._folder(), exist_ok=True)
        private = os.path.join(self._folder(), f".fetching-{uuid.uuid4().hex}")
        inside = os.path.join(private, os.path.basename(copy))
        try:
            if version.is_directory:
                self.storage.get_dir(self.url, inside)
            else:
                self.storage.get_file(self.url, inside)
            if self._version() != version:
                return False
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(private, os.path.dirname(copy))
            return os.path.exists(copy)
        finally:
            shutil.rmtree(private, ignore_errors=True)

    @contextlib.contextmanager
    def _download_lock(self) -> Iterator[None]:
        """Hold this node's lock of the URL. It only avoids duplicate work: after the timeout, continue without it."""
        os.makedirs(self._folder(), exist_ok=True)
        with exclusive_lock(os.path.join(self._folder(), ".lock"), WAIT_SECS) as is_held:
            if not is_held:
                logger.warning(
                    "Another process on this node has been downloading %s for %d s; downloading a second copy.",
                    self.url,
                    WAIT_SECS,
                )
            yield
