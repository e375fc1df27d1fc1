"""Local places that stand for the store: TensorFlow is never handed a remote URL."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator

import tensorflow.compat.v1 as v1

from ray_estimator._checkpoints import Checkpoint, CheckpointStore
from ray_estimator._jobs import ModelJob
from ray_estimator._storage import Storage

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def fetched(store: CheckpointStore, checkpoint: Checkpoint | None) -> Iterator[str | None]:
    """A local prefix to restore from; None for no checkpoint."""
    if checkpoint is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
        yield store.fetch(checkpoint, folder)


def step_of(checkpoint: Checkpoint | None) -> int:
    """The global step with which a restored graph begins."""
    return 0 if checkpoint is None else checkpoint.step


@contextlib.contextmanager
def local_events(storage: Storage, url: str, *, writes: bool = True) -> Iterator[str]:
    """A local directory for event files that belong at `url`; published at the end if `url` is remote.

    Args:
        storage: Opens `url`.
        url: Where the event files belong.
        writes: Whether this process writes there at all; else the files are thrown away.
    """
    local = storage.local_path(url)
    if writes and local is not None:
        try:
            yield local
        finally:
            v1.summary.FileWriterCache.clear()
        return
    with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
        try:
            yield folder
        except BaseException:
            v1.summary.FileWriterCache.clear()
            # What ended the run is what its caller must hear of, not what an upload has to say after it.
            if writes:
                with contextlib.suppress(Exception):
                    storage.put_dir(folder, url)
            raise
        v1.summary.FileWriterCache.clear()
        if writes:
            storage.put_dir(folder, url)


@contextlib.contextmanager
def warm_started(job: ModelJob, store: CheckpointStore) -> Iterator[None]:
    """Makes the variables of the default graph start from the job's warm start, if it has one."""
    settings = job.warm_start
    if settings is None:
        yield
        return
    logger.info("Warm-starting with WarmStartSettings: %s", settings)
    path = settings.ckpt_to_initialize_from
    newest = CheckpointStore(path, Storage(job.config.storage_options)).latest()
    with fetched(store, newest or store.find(path)) as prefix:
        v1.train.warm_start(
            prefix,
            settings.vars_to_warm_start,
            settings.var_name_to_vocab_info,
            settings.var_name_to_prev_var_name,
        )
        yield
