"""Read the checkpoints of a model_dir: the newest, a given one, local copies."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from ray_estimator._checkpoints.files import CheckpointFiles, has_suffix
from ray_estimator._checkpoints.markers import Markers
from ray_estimator._checkpoints.retention import Checkpoint, CheckpointList
from ray_estimator._checkpoints.state_file import StateFile
from ray_estimator._data.position import EndOfRun, Position, position_from_json
from ray_estimator._storage.node_cache import shared_copy
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import CheckpointDamagedError, CheckpointNotFoundError

T = TypeVar("T")

_ATTEMPTS = 20

logger = logging.getLogger(__name__)


class CheckpointReader:
    """Read access to the checkpoints of one model_dir. Every call reads the store; nothing is cached.

    Args:
        model_dir: Local path or URL.
        storage: Accesses it.
        clock: Returns the seconds since the epoch.
    """

    def __init__(self, model_dir: str, storage: Storage, clock: Callable[[], float] = time.time) -> None:
        self._storage = storage
        self._model_dir = storage.normalize(model_dir)
        self._files = CheckpointFiles(storage)
        self._state_file = StateFile(self._model_dir, storage, self._files)
        self._markers = Markers(self._model_dir, storage, clock)

    def latest(self, skip: Collection[Checkpoint] = ()) -> Checkpoint | None:
        """Return the newest published checkpoint that is intact; None if there is none.

        A damaged checkpoint is skipped with a warning: names and sizes of its files must match its manifest, and those
        of local files also the checksums, which each process computes once. Files of checkpoints that are not in the
        state file are ignored. If the state file itself is damaged, the newest intact checkpoint in model_dir is used,
        with a warning.

        Args:
            skip: Checkpoints to skip.
        """
        newest, defects = self._newest_intact(skip)
        for defect in defects:
            if newest is None:
                logger.warning("%s There is no intact checkpoint to fall back to.", defect)
            else:
                logger.warning("%s Falling back to %s.", defect, self._redacted(newest.path))
        return newest

    def start(self, skip: Collection[Checkpoint] = ()) -> Checkpoint | None:
        """Return the checkpoint to resume from: as `latest`, but None only if no checkpoint was published.

        Raises:
            CheckpointDamagedError: Checkpoints were published, and all are damaged.
        """
        newest = self.latest(skip)
        published = [] if newest is not None else self.published()
        if not published:
            return newest
        state_file = self._redacted(self._state_file.url)
        raise CheckpointDamagedError(
            self._redacted(published[-1].path),
            f"{self._files.defect_of(published[-1]) or 'it proved damaged'}, and {state_file} lists no intact "
            f"checkpoint. Restore the files, or delete {state_file} to train from the beginning.",
        )

    def with_newest(self, use: Callable[[Checkpoint | None], T]) -> T:
        """Call `use` with the checkpoint to resume from, or None, and return its result.

        The files are kept during the call. If `use` finds the checkpoint damaged or deleted, it is called again with
        the previous checkpoint, with a warning.

        Raises:
            CheckpointDamagedError: Checkpoints were published, and all are damaged.
            Exception: Any other error of `use`.
        """
        unusable: list[Checkpoint] = []
        while True:
            newest = self.start(unusable)
            if newest is None:
                return use(None)
            with self.reading(newest):
                # If it was pruned before the marker was written, there is a newer one.
                if newest not in self.published():
                    continue
                try:
                    return use(newest)
                except CheckpointNotFoundError as error:
                    if error.checkpoint_path != self._redacted(newest.path):
                        raise
                    logger.warning("%s Trying the previous checkpoint.", error)
            unusable.append(newest)

    @contextlib.contextmanager
    def reading(self, checkpoint: Checkpoint | None) -> Iterator[None]:
        """Keep training runs from deleting the files of `checkpoint`, if it was still published at the start.

        There is no such guarantee without write access, or for checkpoints outside model_dir.
        """
        if checkpoint is None or not self._is_in_model_dir(checkpoint):
            yield
            return
        marker = None
        try:
            marker = self._markers.mark_reading(checkpoint.name)
        except Exception as error:  # Depends on the store; reading needs no write access.
            logger.info("Reading %s without a marker: %s", self._redacted(checkpoint.path), self._redacted(str(error)))
        try:
            yield
        finally:
            if marker is not None:
                with self._logging_errors(f"remove {marker}"):
                    self._markers.remove(marker)

    def published(self) -> list[Checkpoint]:
        """Return the checkpoints in the state file, oldest first, including damaged ones; the current one is last."""
        return [published.checkpoint for published in self._state_file.read().published]

    def position_in(self, checkpoint: Checkpoint | None) -> Position | None:
        """Return the position in the training input at which `checkpoint` was saved; None if unknown.

        Raises:
            CheckpointDamagedError: The manifest is missing, or differs from the one that was published.
        """
        manifest = None if checkpoint is None else self._files.manifest(checkpoint)
        return None if manifest is None else position_from_json(manifest.position)

    def end_of_run(self) -> EndOfRun | None:
        """Return how the run that published the newest checkpoint ended; None if it was interrupted or is running."""
        end = self._state_file.read().end
        return None if end is None else EndOfRun(int(end.get("run", 0)), bool(end.get("input_ended")))

    def find(self, checkpoint_path: str) -> Checkpoint:
        """Return the checkpoint at a path given by the user, whether published or not.

        Args:
            checkpoint_path: Local path or URL without suffix. A relative path is resolved against the current
                directory, then against model_dir.

        Raises:
            CheckpointNotFoundError: It is missing.
            CheckpointDamagedError: It is damaged.
        """
        candidates = [Checkpoint.at(path) for path in self._candidate_paths(checkpoint_path)]
        for candidate in candidates:
            if self._files.sizes(candidate):
                checkpoint = self._with_published_manifest(candidate)
                defect = self._files.defect_of(checkpoint)
                if defect is None:
                    return checkpoint
                raise CheckpointDamagedError(
                    self._redacted(checkpoint_path), f"{self._redacted(checkpoint.path)} is damaged: {defect}."
                )
        tried = " or ".join(self._redacted(candidate.path) for candidate in candidates)
        raise CheckpointNotFoundError(
            self._redacted(checkpoint_path), f"there are no files {tried}.*. {self._advice(checkpoint_path)}"
        )

    def fetch(self, checkpoint: Checkpoint, local_dir: str) -> str:
        """Return a local prefix from which TensorFlow can restore `checkpoint`.

        Args:
            checkpoint: A checkpoint returned by this class.
            local_dir: Where to download and verify the files of a remote checkpoint. Local files stay in place.

        Raises:
            CheckpointDamagedError: It is damaged or missing.
        """
        local_path = self._storage.local_path(checkpoint.path)
        if local_path is not None:
            self._files.require_intact(checkpoint)
            return local_path
        os.makedirs(local_dir, exist_ok=True)
        local_prefix = os.path.join(local_dir, checkpoint.name)
        self._files.download(checkpoint, local_prefix)
        return local_prefix

    @contextlib.contextmanager
    def local_copy(self, checkpoint: Checkpoint) -> Iterator[str]:
        """Yield a local prefix as `fetch` returns it. The processes of a node share the downloaded files.

        Raises:
            CheckpointDamagedError: It is damaged or missing.
        """
        if self._storage.local_path(checkpoint.path) is not None:
            yield self.fetch(checkpoint, "")
            return
        content = checkpoint.manifest or self.fingerprint(checkpoint)
        key = hashlib.sha256(f"{checkpoint.path} {content}".encode()).hexdigest()
        with shared_copy(
            key, lambda folder: self._files.download(checkpoint, os.path.join(folder, checkpoint.name))
        ) as copy:
            yield os.path.join(copy, checkpoint.name)

    def fingerprint(self, checkpoint: Checkpoint) -> str:
        """Return a digest of the checkpoint's index, which has a checksum of each value.

        Raises:
            CheckpointNotFoundError: It has been deleted.
        """
        try:
            index = self._storage.read_bytes(checkpoint.path + ".index")
        except FileNotFoundError as error:
            raise CheckpointNotFoundError(self._redacted(checkpoint.path), "its index is missing.") from error
        return hashlib.sha256(index).hexdigest()

    def _newest_intact(self, skip: Collection[Checkpoint]) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest intact checkpoint, and the defects of newer ones."""
        newest: Checkpoint | None = None
        defects: list[str] = []
        for _ in range(_ATTEMPTS):
            state_file = self._state_file.content()
            newest, defects = self._first_intact(self._state_file.parse(state_file), skip)
            # Otherwise a training run may have pruned the checkpoints in between.
            if not defects or self._state_file.content() == state_file:
                break
        return newest, defects

    def _first_intact(
        self, checkpoints: CheckpointList, skip: Collection[Checkpoint]
    ) -> tuple[Checkpoint | None, list[str]]:
        defects: list[str] = []
        for published in reversed(checkpoints.published):
            checkpoint = published.checkpoint
            if checkpoint in skip:
                continue
            defect = self._files.defect_of(checkpoint)
            if defect is None:
                return checkpoint, defects
            defects.append(f"The published checkpoint {self._redacted(checkpoint.path)} is damaged: {defect}.")
        return None, defects

    @contextlib.contextmanager
    def _logging_errors(self, action: str) -> Iterator[None]:
        """Log errors of an action that may fail without consequences for the run."""
        try:
            yield
        except Exception as error:  # Depends on the store.
            message = "Could not %s in %s: %s"
            logger.warning(message, action, self._redacted(self._model_dir), self._redacted(str(error)))

    def _url(self, name: str) -> str:
        return self._storage.join(self._model_dir, name)

    def _redacted(self, text: str) -> str:
        return self._storage.redacted(text)

    def _is_in_model_dir(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.path.startswith(self._url(""))

    def _with_published_manifest(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return `checkpoint` with its manifest according to the state file, or to the file next to it."""
        published = (published for published in self.published() if published == checkpoint)
        return next(published, None) or self._files.with_manifest(checkpoint)

    def _candidate_paths(self, checkpoint_path: str) -> list[str]:
        path = self._storage.normalize(checkpoint_path)
        in_model_dir = self._state_file.absolute(os.path.expanduser(checkpoint_path))
        return [path] if path == in_model_dir else [path, in_model_dir]

    def _advice(self, checkpoint_path: str) -> str:
        if has_suffix(checkpoint_path):
            return "Omit the suffix, as in model.ckpt-100."
        published = ", ".join(checkpoint.name for checkpoint in self.published())
        return f"Published in {self._redacted(self._model_dir)}: {published or 'none'}."


def checkpoint_at(path: str, storage: Storage) -> Checkpoint:
    """Return the checkpoint at `path`: itself, the newest one of a model_dir, or the variables of a SavedModel.

    Raises:
        CheckpointNotFoundError: There is none, or it is damaged.
    """
    variables = storage.join(storage.normalize(path), "variables", "variables")
    if storage.exists(f"{variables}.index"):
        return Checkpoint.at(variables)
    reader = CheckpointReader(path, storage)
    return reader.latest() or reader.find(path)
