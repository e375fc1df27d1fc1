"""Concurrent readers and a writer that saves and prunes: readers see complete checkpoints with growing steps."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from support.saves import Place, contents_of, read_files, save

from ray_estimator._checkpoints.retention import Retention
from ray_estimator._checkpoints.store import Checkpoint, CheckpointStore

DEADLINE_SECS = 300.0
READERS = 2


class Reader(threading.Thread):
    """Reads the newest checkpoint repeatedly until stopped."""

    def __init__(self, store: CheckpointStore, done: threading.Event) -> None:
        super().__init__(daemon=True)
        self._store = store
        self._done = done
        self.steps: list[int] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._done.is_set():
                self.steps.append(self._store.with_newest(self._read))
        except BaseException as error:
            self.error = error

    def _read(self, newest: Checkpoint | None) -> int:
        assert newest is not None
        with self._store.local_copy(newest) as prefix:
            assert read_files(prefix) == {f"model.ckpt-{newest.step}"}
        return newest.step


@pytest.mark.parametrize(("place", "saves"), [("local", 200), ("memory", 200), ("s3", 40)], indirect=["place"])
def test_readers_see_neither_errors_nor_mixed_checkpoints(place: Place, saves: int, tmp_path: Path) -> None:
    writer = place.store()
    save(writer, 0)
    done = threading.Event()
    readers = [Reader(place.store(), done) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    for step in range(1, saves + 1):
        save(writer, step, Retention(newest=2))
    done.set()
    for reader in readers:
        reader.join(DEADLINE_SECS)
        assert not reader.is_alive()
        assert reader.error is None
        assert reader.steps == sorted(reader.steps)
        assert len(set(reader.steps)) > 3
    last = save(writer, saves + 1, Retention(newest=2))
    assert contents_of(writer, last, tmp_path) == {f"model.ckpt-{saves + 1}"}
    # Files that were kept for readers are deleted after they finish.
    kept = {name.rpartition(".")[0] for name in place.names() if name.endswith(".index")}
    assert kept == {f"model.ckpt-{saves}", f"model.ckpt-{saves + 1}"}
