"""The state file of a model_dir, `checkpoint`. Writing it publishes a checkpoint."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from ray_estimator._checkpoints.files import CheckpointFiles
from ray_estimator._checkpoints.retention import Checkpoint, CheckpointList, Published
from ray_estimator._checkpoints.state_proto import UNKNOWN_TIME, CheckpointState
from ray_estimator._storage.storage import Storage

logger = logging.getLogger(__name__)


class StateFile:
    """Reads and writes the list of published checkpoints of a model_dir.

    Attributes:
        url: URL of the file.

    Args:
        model_dir: Its normalized URL.
        storage: Accesses it.
        files: Accesses the files of the checkpoints.
    """

    def __init__(self, model_dir: str, storage: Storage, files: CheckpointFiles) -> None:
        self.url = storage.join(model_dir, "checkpoint")
        self._model_dir = model_dir
        self._storage = storage
        self._files = files
        self._written: tuple[bytes, CheckpointList] | None = None

    def content(self) -> bytes | None:
        """Return the content; None if the file is missing."""
        try:
            return self._storage.read_bytes(self.url)
        except FileNotFoundError:
            return None

    def read(self) -> CheckpointList:
        """Return the checkpoints published now."""
        return self.parse(self.content())

    def parse(self, content: bytes | None) -> CheckpointList:
        """Return the checkpoints published by `content`."""
        if content is None:
            return CheckpointList((), None)
        try:
            state = CheckpointState.from_text(content.decode())
        except ValueError as error:
            return self._recover(error)
        checkpoints = [self._resolve(path, state.manifests.get(path)) for path in state.paths]
        published = [Published(each, at) for each, at in zip(checkpoints, state.timestamps, strict=True)]
        return CheckpointList(tuple(published), state.last_preserved_timestamp, state.end)

    def _resolve(self, path: str, manifest: str | None) -> Checkpoint:
        """Return the checkpoint listed as `path`: the one of that name in model_dir, if it exists.

        Savers may write absolute paths, which become stale when model_dir is moved or copied.
        """
        listed = replace(Checkpoint.at(self.absolute(path)), manifest=manifest)
        here = replace(listed, path=self.absolute(listed.name))
        return here if listed != here and self._files.defect_of(here) is None else listed

    def _recover(self, error: ValueError) -> CheckpointList:
        """Return the checkpoints to treat as published when the file is damaged.

        This is only the newest intact checkpoint: older ones may have been preserved on purpose, and must not be
        pruned. If any checkpoint has a manifest, those without one are ignored.
        """
        names = self._storage.list_dir(self._model_dir)
        indexed = [name.removesuffix(".index") for name in names if name.endswith(".index")]
        found = [self._files.with_manifest(Checkpoint.at(self.absolute(name))) for name in indexed]
        found = [each for each in found if each.manifest is not None] or found
        by_step = sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)
        newest = next((each for each in by_step if self._files.defect_of(each) is None), None)
        shown = self._storage.redacted(self.url)
        if newest is None:
            logger.warning("%s is damaged (%s), and model_dir contains no intact checkpoint.", shown, error)
            return CheckpointList((), None)
        path = self._storage.redacted(newest.path)
        logger.warning("%s is damaged (%s). Using the newest intact checkpoint, %s.", shown, error, path)
        return CheckpointList((Published(newest, UNKNOWN_TIME),), None)

    def write(self, checkpoints: CheckpointList, fence: Callable[[], None]) -> None:
        """Publish exactly `checkpoints`. `fence` is called before and after, and may raise."""
        relative = [self._relative(published.checkpoint.path) for published in checkpoints.published]
        digests = [published.checkpoint.manifest for published in checkpoints.published]
        state = CheckpointState(
            tuple(relative),
            tuple(published.timestamp for published in checkpoints.published),
            checkpoints.last_preserved_timestamp,
            {path: digest for path, digest in zip(relative, digests, strict=True) if digest is not None},
            checkpoints.end,
        )
        content = state.to_text().encode()
        fence()
        self._storage.write_bytes(self.url, content)
        fence()
        self._written = content, checkpoints

    def republish(self, fence: Callable[[], None]) -> None:
        """Write the file again if its content is not what this object wrote last.

        A writer that was fenced after its last check may have overwritten it.
        """
        if self._written is None or self.content() == self._written[0]:
            return
        logger.warning("%s was overwritten by another writer. Restoring it.", self._storage.redacted(self.url))
        self.write(self._written[1], fence)

    def absolute(self, path: str) -> str:
        """Return the normalized URL of a path that may be relative to model_dir."""
        is_absolute = os.path.isabs(path) or "://" in path
        return self._storage.normalize(path if is_absolute else self._storage.join(self._model_dir, path))

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._storage.join(self._model_dir, ""))
