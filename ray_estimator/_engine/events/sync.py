"""Keep the event files of a local directory in the store, too."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import tensorflow.compat.v1 as v1

from ray_estimator._engine.tf_private import sessions
from ray_estimator._storage.storage import Storage

_EVENTS_EVERY_SECS = 5.0

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def local_events(storage: Storage, url: str, *, writes: bool = True) -> Iterator[str]:
    """A local directory for event files that belong at `url`; published meanwhile and at the end if `url` is remote.

    Args:
        storage: Opens `url`.
        url: Where the event files belong.
        writes: Whether this process writes there at all; else the files are thrown away.
    """
    local = storage.local_path(url)
    if writes and local is not None:
        with sessions.closing_event_writers():
            yield local
        return
    with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
        events = EventFiles(storage, folder, url)
        try:
            meanwhile = events.published_meanwhile() if writes else contextlib.nullcontext()
            with sessions.closing_event_writers(), meanwhile:
                yield folder
        except BaseException:
            # What ended the run is what its caller must hear of, not what an upload has to say after it.
            if writes:
                with contextlib.suppress(Exception):
                    events.publish()
            raise
        if writes:
            events.publish()


class EventFiles:
    """The event files of a local folder, and their copies on a store, which has no way to append to a file.

    Args:
        storage: Opens `url`.
        folder: Where TensorFlow writes them.
        url: Where they belong.
    """

    def __init__(self, storage: Storage, folder: str, url: str) -> None:
        self._storage = storage
        self._folder = folder
        self._url = url
        self._urls: dict[Path, str] = {}
        self._published_sizes: dict[Path, int] = {}

    def publish(self) -> None:
        """Copies what has grown since the last time."""
        for path in sorted(Path(self._folder).rglob("*")):
            size = path.stat().st_size
            if path.is_file() and self._published_sizes.get(path) != size:
                self._storage.put_file(str(path), self._url_of(path))
                self._published_sizes[path] = size

    def _url_of(self, path: Path) -> str:
        if path not in self._urls:
            url = self._storage.join(self._url, path.relative_to(self._folder).as_posix())
            # TensorFlow names event files by the second and the host: the run before may have had the same name.
            while self._storage.exists(url):
                url += ".next"
            self._urls[path] = url
        return self._urls[path]

    @contextlib.contextmanager
    def published_meanwhile(self) -> Iterator[None]:
        """Within it, a thread publishes every few seconds; less often if the files are so large that it takes long."""
        done = threading.Event()
        thread = threading.Thread(target=self._keep_publishing, args=(done,), name="events", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _keep_publishing(self, done: threading.Event) -> None:
        pause = _EVENTS_EVERY_SECS
        while not done.wait(pause):
            began = time.monotonic()
            try:
                self._flush()
                self.publish()
            except Exception as error:
                logger.warning("Event files for %s could not be published; another try follows: %s", self._url, error)
            pause = max(_EVENTS_EVERY_SECS, 10 * (time.monotonic() - began))

    def _flush(self) -> None:
        # Asked for a folder without a writer, the cache would make one, and an empty file.
        if any(Path(self._folder).glob("*tfevents*")):
            v1.summary.FileWriterCache.get(self._folder).flush()
