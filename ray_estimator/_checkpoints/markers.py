"""Markers in a model_dir that tell which files nobody needs, and which somebody reads.

    model_dir/
      .publishing-<id>.json                     the checkpoints that a publication writes, or is to delete
      .reading-<seconds>-<id>-model.ckpt-100    an evaluation or an export reads model.ckpt-100

The first is a log written ahead: of the checkpoints in it, those that the state file does not name are debris, whoever
wrote them and wherever it stopped. It goes when their files are gone. Nothing that no such log names is ever deleted.

The second keeps its checkpoint's files where they are. A reader writes it and then looks whether the checkpoint is
still published; a writer unpublishes and then looks for such marks: one of the two sees the other. A mark that its
reader could not remove, since it died, counts for a day.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection, Iterable

from ray_estimator._storage.storage import Storage

_PUBLISHING = re.compile(r"\.publishing-[0-9a-f]+\.json")
_READING = re.compile(r"\.reading-(\d+)-[0-9a-f]+-(.+)")
_READING_COUNTS_SECS = 24 * 3600.0


class Markers:
    """The marks in one model_dir. Checkpoints go by their names.

    Args:
        model_dir: Where they are, in its one spelling.
        storage: Opens it.
        clock: Seconds since the epoch.
    """

    def __init__(self, model_dir: str, storage: Storage, clock: Callable[[], float]) -> None:
        self._model_dir = model_dir
        self._storage = storage
        self._clock = clock

    def publishing(self, names: Collection[str]) -> None:
        """Marks `names` as debris, unless the state file names them."""
        content = json.dumps(sorted(names)).encode()
        self._storage.write_bytes(self._url(f".publishing-{uuid.uuid4().hex}.json"), content, durable=False)

    def debris(self, listing: Iterable[str]) -> dict[str, set[str]]:
        """The names that each mark of a publication holds, by the mark's own."""
        return {mark: self._read(mark) for mark in filter(_PUBLISHING.fullmatch, listing)}

    def _read(self, mark: str) -> set[str]:
        try:
            return set(json.loads(self._storage.read_bytes(self._url(mark))))
        except (FileNotFoundError, ValueError, TypeError):
            return set()  # Removed meanwhile, or torn: then its publication had not begun.

    def reading(self, name: str) -> str:
        """Markers `name` as being read; gives the mark, to be removed."""
        mark = f".reading-{int(self._clock())}-{uuid.uuid4().hex}-{name}"
        self._storage.write_bytes(self._url(mark), b"", durable=False)
        return mark

    def being_read(self, listing: Iterable[str]) -> set[str]:
        """The names that somebody reads. Markers that count no more are removed."""
        names = set()
        for match in filter(None, map(_READING.fullmatch, listing)):
            if abs(self._clock() - int(match.group(1))) < _READING_COUNTS_SECS:
                names.add(match.group(2))
            else:
                self.remove(match.group())
        return names

    def remove(self, mark: str) -> None:
        """Removes a mark, if it is there."""
        self._storage.remove(self._url(mark))

    def _url(self, mark: str) -> str:
        return self._storage.join(self._model_dir, mark)
