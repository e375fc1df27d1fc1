"""Local copies of checkpoints. TensorFlow is never given a remote URL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ray_estimator._checkpoints.store import Checkpoint, CheckpointStore


@contextlib.contextmanager
def fetched(store: CheckpointStore, checkpoint: Checkpoint | None) -> Iterator[str | None]:
    """Provide a local prefix to restore `checkpoint` from; None for no checkpoint."""
    if checkpoint is None:
        yield None
        return
    with store.local_copy(checkpoint) as prefix:
        yield prefix


def step_of(checkpoint: Checkpoint | None) -> int:
    """Return the global step after restoring `checkpoint`."""
    return 0 if checkpoint is None else checkpoint.step
