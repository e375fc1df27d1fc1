"""Checkpoints in a model_dir on any store, in TensorFlow's own layout.

    model_dir/
      model.ckpt-100.data-00000-of-00001
      model.ckpt-100.meta                   optional
      model.ckpt-100.input-00000-of-00002   state of a worker's tf.data iterator
      model.ckpt-100.index
      model.ckpt-100.manifest.json          sizes and checksums of the other files
      checkpoint                            the state file: the published checkpoints, oldest first
      .publishing-..., .reading-...         markers of publications and readers

A checkpoint is published by a single write, that of the state file, after all its other files are in place, and
unpublished the same way before any of its files is deleted. So the state file lists complete checkpoints at all times.
Its paths are relative to model_dir, which may therefore be moved.

The state file also has the digest of each manifest, and files are valid if they match that manifest. A checkpoint
without a digest was published by TensorFlow; only the names of its files are checked. So a lost manifest is detected.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from ray_estimator._checkpoints import manifest as manifest_module
from ray_estimator._checkpoints.files import records_of, suffixes_in
from ray_estimator._checkpoints.manifest import Manifest
from ray_estimator._checkpoints.reader import CheckpointReader, checkpoint_at
from ray_estimator._checkpoints.retention import Checkpoint, CheckpointList, Retention
from ray_estimator._data.position import EndOfRun, Position
from ray_estimator._storage.scratch import scratch_dir
from ray_estimator._storage.storage import Storage

__all__ = ["Checkpoint", "CheckpointStore", "Retention", "checkpoint_at"]

_STALE_SECS = 3600.0

logger = logging.getLogger(__name__)


class CheckpointStore(CheckpointReader):
    """The checkpoints of one model_dir, with write access.

    Any process may read. Only one process may write, in training the chief. The store is read on every call; only the
    last publication is remembered, for `republish`.

    Args:
        model_dir: Local path or URL.
        storage: Accesses it.
        clock: Returns the seconds since the epoch, for timestamps of checkpoints.
        attempt: The fencing token of the writer, for manifests.
    """

    def __init__(
        self, model_dir: str, storage: Storage, clock: Callable[[], float] = time.time, *, attempt: str = ""
    ) -> None:
        super().__init__(model_dir, storage, clock)
        self._clock = clock
        self._attempt = attempt

    def publish(
        self,
        local_prefix: str,
        step: int,
        retention: Retention,
        *,
        position: Position | None = None,
        fence: Callable[[], None] | None = None,
    ) -> Checkpoint:
        """Publish files written by a Saver as the newest checkpoint, then prune older ones.

        If this is interrupted at any point, the state file lists complete checkpoints only: the previous ones, or these
        and the new one. The next publication then succeeds and deletes leftover files. A published checkpoint of the
        same name is replaced. Checkpoints that are being read, or cannot be deleted, keep their files until a later
        publication.

        Args:
            local_prefix: Local path without suffix, ending with ``-<step>``. Its base name becomes the checkpoint's
                name in model_dir. The files may be moved.
            step: Global step of the checkpoint.
            retention: Selects the older checkpoints to keep.
            position: Position in the training input.
            fence: Raises if this process may no longer write. Called before the first write, and before and after
                each write of the state file; its error ends the publication. None: model_dir is not fenced.

        Raises:
            CheckpointDamagedError: Files at `local_prefix` are missing, or the uploaded files differ from them.
            ValueError: `local_prefix` has a different step, or is in model_dir.
        """
        local_prefix = os.path.abspath(local_prefix)
        name = os.path.basename(local_prefix)
        self._check_prefix(local_prefix, step)
        writer = f"{socket.gethostname()}:{os.getpid()}"
        at = None if position is None else position.to_json()
        manifest = Manifest(step, records_of(local_prefix), writer, self._attempt, at)
        digest = manifest_module.digest_of(manifest.to_bytes())
        target = Checkpoint(self._url(name), step, digest)
        replacement = Checkpoint(self._url(f"{name}-replacement-{step}"), step, digest)

        if fence is None:
            fence = _no_fence
        else:
            self.republish(fence)
        current = self._state_file.read()
        now = self._clock()
        others = current.without(target).without(replacement)
        wanted = others.with_current(target, now)
        pruning = retention.prune(wanted.published, wanted.last_preserved_timestamp)
        unpublished = [published.checkpoint for published in pruning.delete]
        own = (target, replacement, *filter(self._is_in_model_dir, unpublished))
        self._markers.mark_publishing([checkpoint.name for checkpoint in own])
        if current.contains(target):
            # Several files cannot be replaced atomically: publish a copy under another name while they change.
            self._files.put(local_prefix, replacement, manifest, move=False)
            self._state_file.write(others.with_current(replacement, now), fence)
        self._files.put(local_prefix, target, manifest, move=True)
        self._files.require_intact(target)
        kept = CheckpointList(pruning.keep, pruning.last_preserved_timestamp)
        self._state_file.write(kept, fence)
        self._delete_unpublished(kept)
        return target

    def conclude(self, end: EndOfRun, fence: Callable[[], None] | None = None) -> None:
        """Record how the run that published the newest checkpoint ended, until the next publication."""
        current = self._state_file.read()
        if current.published:
            self._state_file.write(replace(current, end=asdict(end)), fence or _no_fence)

    def republish(self, fence: Callable[[], None]) -> None:
        """Write the state file again if a late write of a fenced writer has replaced that of the last `publish`.

        Args:
            fence: As in `publish`. It proves that no newer writer wrote the file.
        """
        fence()
        self._state_file.republish(fence)

    def write_text(self, name: str, text: str) -> None:
        """Create or replace a small file in model_dir, such as graph.pbtxt."""
        self._storage.write_bytes(self._url(name), text.encode())

    def staging_dir(self) -> contextlib.AbstractContextManager[str]:
        """Return a new local directory for a Saver, deleted at the end; directories of killed processes are deleted.

        For a local model_dir it is a hidden subdirectory, so that `publish` renames the files instead of copying them.
        """
        local_path = self._storage.local_path(self._model_dir)
        if local_path is None:
            return scratch_dir(tempfile.gettempdir(), "ray-estimator-saving-")
        return scratch_dir(local_path, ".saving-")

    def _check_prefix(self, local_prefix: str, step: int) -> None:
        if Checkpoint.at(local_prefix).step != step:
            raise ValueError(f"Expected a prefix that ends with -{step}, the global step, got {local_prefix!r}.")
        if os.path.dirname(local_prefix) == self._storage.local_path(self._model_dir):
            raise ValueError(f"Expected files outside model_dir, got {local_prefix!r}. Save them in a staging_dir().")

    def _delete_unpublished(self, kept: CheckpointList) -> None:
        """Delete the checkpoints in publishing markers that are neither published nor being read."""
        with self._logging_errors("delete old files"):
            listing = self._storage.list_dir(self._model_dir)
            published = {published.checkpoint.name for published in kept.published}
            being_read = self._markers.being_read(listing)
            for marker, names in self._markers.being_published(listing).items():
                unneeded = names - published
                deleted = [self._delete(name, listing) for name in unneeded - being_read]
                if all(deleted) and unneeded.isdisjoint(being_read):
                    self._markers.remove(marker)
            self._storage.remove_stale_temporaries(self._model_dir, _STALE_SECS)

    def _delete(self, name: str, listing: Sequence[str]) -> bool:
        """Delete the files of an unpublished checkpoint; False if that failed."""
        checkpoint = Checkpoint.at(self._url(name))
        with self._logging_errors(f"delete all files of the old checkpoint {name}"):
            self._files.delete(checkpoint, suffixes_in(listing, checkpoint))
            return True
        return False


def _no_fence() -> None:
    """Allow every write."""
