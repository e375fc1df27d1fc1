"""Checkpoints without a Saver: their files contain the name of their checkpoint."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_estimator._checkpoints.retention import Checkpoint, Retention
from ray_estimator._checkpoints.store import CheckpointStore
from ray_estimator._storage.storage import Storage

KEEP_ALL = Retention(newest=None)
SUFFIXES = (".data-00000-of-00002", ".data-00001-of-00002", ".index", ".meta")
MANIFEST = ".manifest.json"


@dataclass(frozen=True)
class Place:
    """An empty directory on a store.

    Attributes:
        url: Its URL; it does not exist yet.
        kind: The kind of store.
        options: Storage options of the store.
    """

    url: str
    kind: str = "local"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def storage(self) -> Storage:
        return Storage(self.options)

    def store(self, storage: Storage | None = None, clock: Callable[[], float] = lambda: 1e9) -> CheckpointStore:
        return CheckpointStore(self.url, storage or self.storage, clock)

    def names(self) -> list[str]:
        return self.storage.list_dir(self.url)

    def file(self, name: str) -> str:
        return self.storage.join(self.url, name)


def store_at(model_dir: str, clock: Callable[[], float] = lambda: 1e9) -> CheckpointStore:
    return CheckpointStore(model_dir, Storage(), clock)


def write_files(prefix: str, content: str = "", suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Write the files of a checkpoint; each contains its name."""
    os.makedirs(os.path.dirname(prefix), exist_ok=True)
    for suffix in suffixes:
        Path(prefix + suffix).write_text(content or os.path.basename(prefix))


def save(
    store: CheckpointStore, step: int, retention: Retention = KEEP_ALL, content: str = "", name: str = "model.ckpt"
) -> Checkpoint:
    with store.staging_dir() as staging:
        prefix = os.path.join(staging, f"{name}-{step}")
        write_files(prefix, content)
        return store.publish(prefix, step, retention)


def steps(checkpoints: Sequence[Checkpoint]) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints]


def contents_of(store: CheckpointStore, checkpoint: Checkpoint, tmp_path: Path) -> set[str]:
    """The distinct contents of a checkpoint's files: one text if they belong together."""
    return read_files(store.fetch(checkpoint, str(tmp_path / uuid.uuid4().hex)))


def read_files(prefix: str) -> set[str]:
    return {Path(prefix + suffix).read_text() for suffix in SUFFIXES}
