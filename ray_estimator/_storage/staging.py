"""`stage()`: files that user code names by URL, as local files of the node that it runs on.

TensorFlow opens local files; whatever lies on an object store is fetched first, once for each node.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ray_estimator._storage.content_marks import content_marks
from ray_estimator._storage.storage import Storage
from ray_estimator.config import RunConfig

T = TypeVar("T")

logger = logging.getLogger(__name__)

_WAIT_SECS = 600.0
_LOOK_SECS = 0.1
_TRIES = 3


def stage(url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> str:
    """Gives a local path with the content of `url`, for what TensorFlow is to open: vocabularies, TFRecords, assets.

    Call it in model_fn, input_fn or a hook: it runs there, on each worker or task, and fetches the file once for each
    node, however many processes ask. A file that has changed in its store since is fetched anew; who has the old path
    keeps the old content. Works on the driver and in process alike.

    Example:
        >>> def model_fn(features, labels, mode):
        ...     vocabulary = ray_estimator.stage("s3://bucket/vocab.txt")
        ...     table = tf.lookup.StaticVocabularyTable(tf.lookup.TextFileInitializer(vocabulary, ...), 1)

    Args:
        url: Of a file or a directory, on any store that fsspec opens. A local path is given back as it is, and
            ``file://...`` as a local path.
        storage_options: fsspec's options, for example credentials. None: those of the `RunConfig` of the run that
            calls, if `model_dir` lies on the same kind of store as `url`, or on none; outside of a run, fsspec's
            defaults. Functions that tf.data calls in threads of its own are outside: call `stage` in input_fn itself.

    Returns:
        The path of the local file or directory; its last name is that of `url`. Do not change what is there.

    Raises:
        FileNotFoundError: There is nothing at `url`, or no such local path on this node.
        OSError: The file keeps changing while it is fetched.
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
def staging_for(config: RunConfig) -> Iterator[None]:
    """Within it, `stage` uses the storage options of this run."""
    token = _running.set(config)
    try:
        yield
    finally:
        _running.reset(token)


def iterating_for(config: RunConfig, batches: Generator[T]) -> Generator[T]:
    """What `batches` gives; its code runs within `staging_for`, that of who iterates does not."""
    context = contextvars.copy_context()
    context.run(_running.set, config)
    try:
        while True:
            try:
                batch = context.run(next, batches)
            except StopIteration:
                return
            yield batch
    finally:
        context.run(batches.close)


_running: contextvars.ContextVar[RunConfig | None] = contextvars.ContextVar("running", default=None)


def _options_for(url: str) -> Mapping[str, Any] | None:
    """The running job's storage options, unless they are for another kind of store, which would not take them."""
    config = _running.get()
    if config is None:
        return None
    runs_on = _scheme(str(config.model_dir or ""))
    return config.storage_options if runs_on in (None, _scheme(url)) else None


def _scheme(url: str) -> str | None:
    scheme, separator, _ = url.partition("://")
    return scheme if separator and scheme not in ("file", "local") else None


@dataclass(frozen=True)
class _State:
    """What is at a URL now; `mark` changes with the content, as far as the store tells."""

    is_directory: bool
    mark: str

    @classmethod
    def of(cls, described: Mapping[str, Mapping[str, Any]]) -> _State:
        marks = sorted((name, content_marks(info)) for name, info in described.items())
        return cls(set(described) != {""}, hashlib.sha256(repr(marks).encode()).hexdigest())


@dataclass(frozen=True)
class _Staged:
    """The local copies of one URL."""

    storage: Storage
    url: str

    def path(self) -> str:
        """The copy of what is there now; fetched if this node has none."""
        for _ in range(_TRIES):
            state = self._state()
            copy = os.path.join(self._folder(), state.mark[:16], self.url.rpartition("/")[2])
            if os.path.exists(copy):
                return copy
            with self._fetching_alone():
                if os.path.exists(copy) or self._fetched(state, copy):
                    return copy
        raise OSError(
            errno.EAGAIN, f"Expected a file that rests, but it changed in {_TRIES} tries to fetch it", self.url
        )

    def _state(self) -> _State:
        try:
            return _State.of(self.storage.describe(self.url))
        except FileNotFoundError as error:
            # Some stores say this of a file that one may not see, too.
            raise FileNotFoundError(
                errno.ENOENT, "No such file or directory, or none that these storage_options open", self.url
            ) from error

    def _folder(self) -> str:
        return os.path.join(_cache(), hashlib.sha256(self.url.encode()).hexdigest()[:16])

    def _fetched(self, state: _State, copy: str) -> bool:
        """Fetches `state`, all or nothing; False if it is not what is there any more."""
        os.makedirs(self._folder(), exist_ok=True)
        private = os.path.join(self._folder(), f".fetching-{uuid.uuid4().hex}")
        inside = os.path.join(private, os.path.basename(copy))
        try:
            if state.is_directory:
                self.storage.get_dir(self.url, inside)
            else:
                self.storage.get_file(self.url, inside)
            if self._state() != state:
                return False
            with contextlib.suppress(OSError):  # somebody else was faster
                os.rename(private, os.path.dirname(copy))
            return os.path.exists(copy)
        finally:
            shutil.rmtree(private, ignore_errors=True)

    @contextlib.contextmanager
    def _fetching_alone(self) -> Iterator[None]:
        """Holds the node's lock of this URL. It is for thrift alone: after the deadline we fetch beside its holder."""
        os.makedirs(self._folder(), exist_ok=True)
        with open(os.path.join(self._folder(), ".lock"), "w") as lock:
            deadline = time.monotonic() + _WAIT_SECS
            while not _taken(lock.fileno()):
                if time.monotonic() > deadline:
                    logger.warning(
                        "Another process of this node has been fetching %s for %d s; fetching it here, too.",
                        self.url,
                        _WAIT_SECS,
                    )
                    break
                time.sleep(_LOOK_SECS)
            yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _cache() -> str:
    """This user's folder for staged files, which nobody else may write to."""
    folder = os.path.join(tempfile.gettempdir(), f"ray-estimator-staged-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.stat(folder).st_uid != os.getuid():
        raise PermissionError(
            errno.EPERM, "The folder for staged files belongs to another user: set TMPDIR to one of your own", folder
        )
    return folder
