"""Marker files in a model_dir: which checkpoints a publication may leave unfinished, and which are being read.

    model_dir/
      .publishing-<id>.json                     the checkpoints that a publication writes or will delete
      .reading-<seconds>-<id>-model.ckpt-100    an evaluation or an export reads model.ckpt-100

A publishing marker is a write-ahead log: the checkpoints in it that are not in the state file are garbage, wherever
the publication stopped. The marker is deleted after their files. No other checkpoint is ever deleted.

A reading marker keeps the files of its checkpoint. A reader writes it, then checks that the checkpoint is still
published; a writer unpublishes, then checks for markers. So at least one of them sees the other. The marker of a killed
reader expires after a day.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection, Iterable

from ray_estimator._storage.storage import Storage

_PUBLISHING = re.compile(r"\.publishing-[0-9a-f]+\.json")
_READING = re.compile(r"\.reading-(\d+)-[0-9a-f]+-(.+)")
_READING_TTL_SECS = 24 * 3600.0


class Markers:
    """The markers in one model_dir. Checkpoints are identified by their names.

    Args:
        model_dir: Its normalized URL.
        storage: Accesses it.
        clock: Returns the seconds since the epoch.
    """

    def __init__(self, model_dir: str, storage: Storage, clock: Callable[[], float]) -> None:
        self._model_dir = model_dir
        self._storage = storage
        self._clock = clock

    def mark_publishing(self, names: Collection[str]) -> None:
        """Mark `names` as garbage, unless they are in the state file."""
        content = json.dumps(sorted(names)).encode()
        self._storage.write_bytes(self._url(f".publishing-{uuid.uuid4().hex}.json"), content, durable=False)

    def being_published(self, listing: Iterable[str]) -> dict[str, set[str]]:
        """Return the checkpoint names in each publishing marker, by marker."""
        return {marker: self._read(marker) for marker in filter(_PUBLISHING.fullmatch, listing)}

    def _read(self, marker: str) -> set[str]:
        try:
            return set(json.loads(self._storage.read_bytes(self._url(marker))))
        except (FileNotFoundError, ValueError, TypeError):
            return set()  # Deleted concurrently, or truncated: then its publication had not begun.

    def mark_reading(self, name: str) -> str:
        """Mark `name` as being read; return the marker, to be removed."""
        marker = f".reading-{int(self._clock())}-{uuid.uuid4().hex}-{name}"
        self._storage.write_bytes(self._url(marker), b"", durable=False)
        return marker

    def being_read(self, listing: Iterable[str]) -> set[str]:
        """Return the names that are being read. Expired markers are removed."""
        names = set()
        for match in filter(None, map(_READING.fullmatch, listing)):
            if abs(self._clock() - int(match.group(1))) < _READING_TTL_SECS:
                names.add(match.group(2))
            else:
                self.remove(match.group())
        return names

    def remove(self, marker: str) -> None:
        """Remove a marker if it exists."""
        self._storage.remove(self._url(marker))

    def _url(self, marker: str) -> str:
        return self._storage.join(self._model_dir, marker)
