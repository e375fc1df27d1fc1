"""Local places that stand for the store: TensorFlow is never handed a remote URL."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ray_estimator._checkpoints.store import Checkpoint, CheckpointStore

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def fetched(store: CheckpointStore, checkpoint: Checkpoint | None) -> Iterator[str | None]:
    """A local prefix to restore from; None for no checkpoint."""
    if checkpoint is None:
        yield None
        return
    with store.local_copy(checkpoint) as prefix:
        yield prefix


def step_of(checkpoint: Checkpoint | None) -> int:
    """The global step with which a restored graph begins."""
    return 0 if checkpoint is None else checkpoint.step
