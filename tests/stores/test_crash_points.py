"""Failures and crashes at each write of a save, a pruning, the lease and an export in turn.

Afterwards readers see the last complete publication, and the next writer succeeds.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.saves import KEEP_ALL, Place, contents_of, save, steps, write_files

from ray_estimator._checkpoints.fence import claim
from ray_estimator._checkpoints.lease import acquire
from ray_estimator._checkpoints.retention import Retention
from ray_estimator._checkpoints.store import CheckpointStore
from ray_estimator._checkpoints.writers import Token
from ray_estimator._process.identity import Process
from ray_estimator._storage import saved_model
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import WriterFencedError

WAYS = ["fails", "loses its answer", "dies"]
everywhere = pytest.mark.parametrize(
    ("place", "way"),
    [(store, way) for store in ("local", "memory") for way in WAYS] + [("s3", "dies")],
    indirect=["place"],
)


class Death(BaseException):
    """The process dies here: none of its later writes reaches the store."""


class FaultyStorage(Storage):
    """Injects a fault into one write, counted from 0: an error, a lost response, or the death of the process."""

    def __init__(self, options: Any, at: int, way: str) -> None:
        super().__init__(options)
        object.__setattr__(self, "fault", {"left": at, "way": way, "dead": False})

    @property
    def struck(self) -> bool:
        return bool(self.fault["left"] < 0)  # type: ignore[attr-defined]

    def _change(self, change: Callable[[], None]) -> None:
        fault: dict[str, Any] = self.fault  # type: ignore[attr-defined]
        if fault["dead"]:
            raise Death
        fault["left"] -= 1
        if fault["left"] != -1:
            change()
        elif fault["way"] == "dies":
            fault["dead"] = True
            raise Death
        else:
            if fault["way"] == "loses its answer":
                change()
            raise OSError("The store does not answer.")

    def write_bytes(self, url: str, data: bytes, *, durable: bool = True) -> None:
        self._change(lambda: Storage.write_bytes(self, url, data, durable=durable))

    def create_bytes(self, url: str, data: bytes) -> None:
        self._change(lambda: Storage.create_bytes(self, url, data))

    def put_file(self, local_path: str, url: str, *, move: bool = False) -> None:
        self._change(lambda: Storage.put_file(self, local_path, url, move=move))

    def remove(self, url: str) -> None:
        self._change(lambda: Storage.remove(self, url))

    def remove_dir(self, url: str) -> None:
        self._change(lambda: Storage.remove_dir(self, url))


def faults(place: Place, way: str) -> Iterator[FaultyStorage]:
    """Storages with a fault in the first write, then in the second, and so on until there are no more writes."""
    for at in range(100):
        storage = FaultyStorage(place.options, at, way)
        yield storage
        if not storage.struck:
            return
    raise AssertionError("More than 100 writes.")


def attempt(do: Callable[[], Any]) -> bool:
    """Whether the call succeeded despite the injected fault."""
    try:
        do()
    except (Death, OSError):
        return False
    return True


class Rewind:
    """Restores the content of a place."""

    def __init__(self, place: Place, kept: Path) -> None:
        self._place, self._kept = place, str(kept)
        place.storage.get_dir(place.url, self._kept)

    def __call__(self) -> None:
        self._place.storage.remove_dir(self._place.url)
        self._place.storage.put_dir(self._kept, self._place.url)


def publish(store: CheckpointStore, folder: Path, step: int, retention: Retention, content: str) -> None:
    prefix = str(folder / uuid.uuid4().hex / f"model.ckpt-{step}")
    write_files(prefix, content)
    store.publish(prefix, step, retention)


@everywhere
def test_an_interrupted_save_leaves_only_complete_checkpoints_published(place: Place, way: str, tmp_path: Path) -> None:
    keep_two = Retention(newest=2)
    for step in (10, 20):
        save(place.store(), step)
    rewind = Rewind(place, tmp_path / "kept")
    seen = []
    for storage in faults(place, way):
        rewind()
        arrived = attempt(lambda s=storage: publish(place.store(s), tmp_path, 30, keep_two, "new"))  # type: ignore[misc]
        store = place.store()
        latest = store.latest()
        assert latest is not None
        seen.append(latest.step)
        assert latest.step == 30 or not arrived
        assert contents_of(store, latest, tmp_path) == {"new" if latest.step == 30 else "model.ckpt-20"}
        # Deleted only after they are unpublished: all published ones are complete, including the previous one.
        assert all(store.find(checkpoint.path) for checkpoint in store.published())
        assert 20 in steps(store.published())

        again = save(store, 30, keep_two, content="again")
        assert store.latest() == again
        assert contents_of(store, again, tmp_path) == {"again"}
        assert steps(store.published()) == [20, 30]
        # The leftover files of the interrupted save are deleted.
        assert not [name for name in place.names() if name.startswith((".publishing", "model.ckpt-10"))]
        assert len([name for name in place.names() if "replacement" in name]) == 0
    assert seen == sorted(seen)
    assert set(seen) == {20, 30}


@everywhere
@pytest.mark.parametrize("others", [[], [5]])
def test_an_interrupted_replacement_leaves_the_old_or_the_new_checkpoint(
    place: Place, way: str, others: list[int], tmp_path: Path
) -> None:
    for step in others:
        save(place.store(), step)
    save(place.store(), 10, content="old")
    rewind = Rewind(place, tmp_path / "kept")
    seen = []
    for storage in faults(place, way):
        rewind()
        attempt(lambda s=storage: publish(place.store(s), tmp_path, 10, KEEP_ALL, "new"))  # type: ignore[misc]
        store = place.store()
        latest = store.latest()
        assert latest is not None
        assert latest.step == 10
        (content,) = contents_of(store, latest, tmp_path)
        seen.append(content)

        again = save(store, 10, content="again")
        assert contents_of(store, again, tmp_path) == {"again"}
        assert steps(store.published()) == [*others, 10]
        assert [name for name in place.names() if name.startswith("model.ckpt-10") and name.endswith(".index")] == [
            "model.ckpt-10.index"
        ]
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"old", "new"}


@everywhere
def test_an_interrupted_first_save_leaves_no_checkpoint_or_a_complete_one(
    place: Place, way: str, tmp_path: Path
) -> None:
    for storage in faults(place, way):
        place.storage.remove_dir(place.url)
        attempt(lambda s=storage: publish(place.store(s), tmp_path, 10, KEEP_ALL, "new"))  # type: ignore[misc]
        latest = place.store().start()
        assert latest is None or contents_of(place.store(), latest, tmp_path) == {"new"}
        again = save(place.store(), 10, content="again")
        assert contents_of(place.store(), again, tmp_path) == {"again"}


def a_dead_driver() -> Process:
    """A process of this machine that is known to be dead."""
    return replace(Process.current(), started=-2)


@everywhere
def test_after_an_interrupted_driver_the_next_one_acquires_the_lease_and_fences_it(place: Place, way: str) -> None:
    def run_a_driver(storage: Storage, process: Process) -> None:
        lease = acquire(place.url, storage, process=process)
        fences.append(claim(place.url, storage, Token(lease.generation, 1)))
        lease.renew()
        fences.append(claim(place.url, storage, Token(lease.generation, 2)))
        lease.release()

    for storage in faults(place, way):
        place.storage.remove_dir(place.url)
        fences: list[Callable[[], None]] = []
        # Two drivers before it, so that there are old files to delete.
        for _ in range(2):
            run_a_driver(place.storage, a_dead_driver())
        attempt(lambda s=storage: run_a_driver(s, a_dead_driver()))  # type: ignore[misc]
        lease = acquire(place.url, place.storage)
        fence = claim(place.url, place.storage, Token(lease.generation, 1))
        fence()
        for old in fences:
            with pytest.raises(WriterFencedError):
                old()
        lease.release()


@everywhere
def test_an_interrupted_export_with_a_graph_is_complete(
    place: Place, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(10**9, 2 * 10**9))
    monkeypatch.setattr("time.time", lambda: float(next(now)))
    files = {"saved_model.pb": "graph", "variables/variables.index": "index", "variables/variables.data": "data"}

    def export(storage: Storage) -> str:
        with saved_model.staging_dir(storage, place.url) as staging:
            for name, text in files.items():
                path = Path(staging, "new", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return saved_model.publish(storage, os.path.join(staging, "new"), place.url)

    def found() -> list[dict[str, str]]:
        """The files of each export visible to loaders: named by a number, with a graph."""
        exports = []
        for name in filter(str.isdigit, place.names()):
            url = place.file(name)
            if place.storage.exists(f"{url}/saved_model.pb"):
                exports.append({file: place.storage.read_bytes(f"{url}/{file}").decode() for file in files})
        return exports

    for storage in faults(place, way):
        place.storage.remove_dir(place.url)
        export(place.storage)
        arrived = attempt(lambda s=storage: export(s))  # type: ignore[misc]
        assert found() in ([files] * (1 + arrived), [files] * 2)
        export(place.storage)
        assert found()[-1] == files
