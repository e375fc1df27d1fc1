"""Publish the event files of a local directory to the store."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow.compat.v1 as v1

from ray_estimator._checkpoints.event_files import EVENT_FILES
from ray_estimator._process.periodic import PeriodicThread
from ray_estimator._storage.storage import Storage
from ray_estimator._tf_private import sessions

_PUBLISH_INTERVAL_SECS = 5.0
_MAX_LOAD = 0.1  # each upload copies whole files: stores cannot append

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def local_events(storage: Storage, url: str, *, writes: bool = True) -> Iterator[str]:
    """Provide a local directory for the event files of `url`, published periodically and at the end if `url` is remote.

    Args:
        storage: Opens `url`.
        url: Where the event files belong.
        writes: Whether this process writes to `url`. False: the files are discarded.
    """
    local = storage.local_path(url)
    if writes and local is not None:
        with sessions.closing_event_writers():
            yield local
        return
    with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
        if not writes:
            with sessions.closing_event_writers():
                yield folder
            return
        events = EventFiles(storage, folder, url)
        try:
            with sessions.closing_event_writers(), events.published_periodically():
                yield folder
        except BaseException:
            try:
                events.publish()
            except Exception as error:  # must not replace the error that ended the run
                logger.warning("The last event files for %s were not published: %s", url, error)
            raise
        events.publish()


class EventFiles:
    """The event files of a local directory, and their copies in a store that cannot append to a file.

    Args:
        storage: Opens `url`.
        folder: The directory that TensorFlow writes to.
        url: Where the copies go.
    """

    def __init__(self, storage: Storage, folder: str, url: str) -> None:
        self._storage = storage
        self._folder = folder
        self._url = url
        self._urls: dict[Path, str] = {}
        self._published_sizes: dict[Path, int] = {}

    def publish(self) -> None:
        """Copy the files that have grown since the last call."""
        for path in sorted(Path(self._folder).rglob("*")):
            size = path.stat().st_size
            if path.is_file() and self._published_sizes.get(path) != size:
                self._storage.put_file(str(path), self._url_of(path))
                self._published_sizes[path] = size

    def published_periodically(self) -> PeriodicThread:
        """Return a context within which a thread publishes every few seconds, less often if uploads are slow."""
        name = f"Publishing event files to {self._url}"
        return PeriodicThread(self._flush_and_publish, _PUBLISH_INTERVAL_SECS, name=name, max_load=_MAX_LOAD)

    def _url_of(self, path: Path) -> str:
        if path not in self._urls:
            url = self._storage.join(self._url, path.relative_to(self._folder).as_posix())
            # TensorFlow names event files by second and host, so an earlier run may have used this name.
            while self._storage.exists(url):
                url += ".next"
            self._urls[path] = url
        return self._urls[path]

    def _flush_and_publish(self) -> None:
        # For a directory without a writer, FileWriterCache would create one, and an empty file.
        if any(Path(self._folder).glob(EVENT_FILES)):
            v1.summary.FileWriterCache.get(self._folder).flush()
        self.publish()
