"""The state file of a model_dir, `checkpoint`: the one write that publishes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from ray_estimator._checkpoints.files import CheckpointFiles
from ray_estimator._checkpoints.retention import Checkpoint, Ledger, Published
from ray_estimator._checkpoints.state_proto import UNKNOWN_TIME, CheckpointState
from ray_estimator._storage.storage import Storage

logger = logging.getLogger(__name__)


class StateFile:
    """Reads and writes the ledger of a model_dir.

    Attributes:
        url: Of the file.

    Args:
        model_dir: Where it is, in its one spelling.
        storage: Opens it.
        files: The files of the checkpoints.
    """

    def __init__(self, model_dir: str, storage: Storage, files: CheckpointFiles) -> None:
        self.url = storage.join(model_dir, "checkpoint")
        self._model_dir = model_dir
        self._storage = storage
        self._files = files
        self._written: tuple[bytes, Ledger] | None = None

    def content(self) -> bytes | None:
        """What it says now; None if there is none."""
        try:
            return self._storage.read_bytes(self.url)
        except FileNotFoundError:
            return None

    def ledger(self) -> Ledger:
        """What is published now."""
        return self.ledger_in(self.content())

    def ledger_in(self, content: bytes | None) -> Ledger:
        """What is published if the file says `content`."""
        if content is None:
            return Ledger((), None)
        try:
            state = CheckpointState.from_text(content.decode())
        except ValueError as error:
            return self._without_state(error)
        checkpoints = [self._listed_as(path, state.manifests.get(path)) for path in state.paths]
        published = [Published(each, at) for each, at in zip(checkpoints, state.timestamps, strict=True)]
        return Ledger(tuple(published), state.last_preserved_timestamp, state.end)

    def _listed_as(self, path: str, manifest: str | None) -> Checkpoint:
        """The checkpoint that the file names so: the one in model_dir, if it has one of that name.

        Savers with absolute paths list where a checkpoint was when it was saved; since then model_dir may have been
        moved, or copied.
        """
        listed = replace(Checkpoint.at(self.absolute(path)), manifest=manifest)
        here = replace(listed, path=self.absolute(listed.name))
        return here if listed != here and self._files.defect_of(here) is None else listed

    def _without_state(self, error: ValueError) -> Ledger:
        """What to take for published when the file is damaged.

        Just the newest whole checkpoint: one that is not published is never pruned, and older ones may have been
        preserved on purpose. Where there are manifests, it has one.
        """
        names = self._storage.list_dir(self._model_dir)
        indexed = [name.removesuffix(".index") for name in names if name.endswith(".index")]
        found = [self._files.with_manifest(Checkpoint.at(self.absolute(name))) for name in indexed]
        found = [each for each in found if each.manifest is not None] or found
        by_step = sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)
        newest = next((each for each in by_step if self._files.defect_of(each) is None), None)
        shown = self._storage.redacted(self.url)
        if newest is None:
            logger.warning("%s is damaged (%s), and there is no whole checkpoint beside it.", shown, error)
            return Ledger((), None)
        path = self._storage.redacted(newest.path)
        logger.warning("%s is damaged (%s). Using the newest whole checkpoint, %s.", shown, error, path)
        return Ledger((Published(newest, UNKNOWN_TIME),), None)

    def write(self, ledger: Ledger, fence: Callable[[], None]) -> None:
        """Publishes `ledger`, and nothing else. `fence` is called before and after; it may raise."""
        relative = [self._relative(published.checkpoint.path) for published in ledger.published]
        digests = [published.checkpoint.manifest for published in ledger.published]
        state = CheckpointState(
            tuple(relative),
            tuple(published.timestamp for published in ledger.published),
            ledger.last_preserved_timestamp,
            {path: digest for path, digest in zip(relative, digests, strict=True) if digest is not None},
            ledger.end,
        )
        content = state.to_text().encode()
        fence()
        self._storage.write_bytes(self.url, content)
        fence()
        self._written = content, ledger

    def reassert(self, fence: Callable[[], None]) -> None:
        """Publishes again what this object published last, if that is not what the file says.

        A writer that was fenced after it had looked for the last time may have overwritten it.
        """
        if self._written is None or self.content() == self._written[0]:
            return
        logger.warning("%s was overwritten by another writer. Restoring it.", self._storage.redacted(self.url))
        self.write(self._written[1], fence)

    def absolute(self, path: str) -> str:
        """A path that the file names, or that someone else takes as relative to model_dir."""
        is_absolute = os.path.isabs(path) or "://" in path
        return self._storage.normalize(path if is_absolute else self._storage.join(self._model_dir, path))

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._storage.join(self._model_dir, ""))
