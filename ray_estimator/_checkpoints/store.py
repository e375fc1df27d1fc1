"""Checkpoints in a model_dir on any store, in TensorFlow's own layout.

    model_dir/
      model.ckpt-100.data-00000-of-00001
      model.ckpt-100.meta                   optional
      model.ckpt-100.input-00000-of-00002   where the tf.data iterator of a worker was
      model.ckpt-100.index
      model.ckpt-100.manifest.json          what the other files are
      checkpoint                            the state file: which checkpoints are published, oldest first
      .publishing-..., .reading-...         marks of what happens just now

A checkpoint is published by one write, that of the state file, after all its other files are in place; it is
unpublished the same way before any of its files is deleted. So at every moment the state file names whole
checkpoints. It names them by paths relative to model_dir, which may therefore be moved.

Beside each one the state file notes the digest of its manifest, and a reader takes the files for what they are if they
are what that manifest says. A checkpoint without such a note was published by TensorFlow; of it the names of the files
say whether it is whole. So a manifest that got lost is told from one that never was.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TypeVar

from ray_estimator._checkpoints import manifest as manifest_module
from ray_estimator._checkpoints.files import CheckpointFiles, has_suffix, records_of, suffixes_in
from ray_estimator._checkpoints.manifest import Manifest
from ray_estimator._checkpoints.markers import Markers
from ray_estimator._checkpoints.retention import Checkpoint, Ledger, Retention
from ray_estimator._checkpoints.state_file import StateFile
from ray_estimator._data.position import EndOfRun, Position, position_from_json
from ray_estimator._storage.node_cache import shared_copy
from ray_estimator._storage.scratch import scratch_dir
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import CheckpointDamagedError, CheckpointNotFoundError

__all__ = ["Checkpoint", "CheckpointStore", "Retention", "checkpoint_at"]

T = TypeVar("T")

_STALE_SECS = 3600.0
_LOOKS = 20

logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one model_dir.

    Every call reads the store; only what `publish` wrote last is remembered. Any process may read; `publish`,
    `reassert` and `write_text` are for the one process that writes, in training the chief.

    Args:
        model_dir: Local path or URL.
        storage: Opens it.
        clock: Seconds since the epoch, for the timestamps of checkpoints.
        attempt: Which of the attempts at training writes, for its manifests.
    """

    def __init__(
        self, model_dir: str, storage: Storage, clock: Callable[[], float] = time.time, *, attempt: str = ""
    ) -> None:
        self._storage = storage
        self._model_dir = storage.normalize(model_dir)
        self._clock = clock
        self._attempt = attempt
        self._files = CheckpointFiles(storage)
        self._state_file = StateFile(self._model_dir, storage, self._files)
        self._marks = Markers(self._model_dir, storage, clock)

    # Reading

    def latest(self, skip: Collection[Checkpoint] = ()) -> Checkpoint | None:
        """The newest published checkpoint that is whole; None if there is none.

        A published checkpoint that is not whole is passed over, with a warning. Its files must have the names and sizes
        of its manifest; of local files the checksums are looked at, too, once in each process. Files that the state
        file does not name do not count, unless the state file itself is damaged: then the newest whole checkpoint in
        model_dir counts as the published one, with a warning.

        Args:
            skip: Checkpoints that are to be passed over.
        """
        newest, defects = self._newest_whole(skip)
        for defect in defects:
            if newest is None:
                logger.warning("%s There is no whole one to fall back to.", defect)
            else:
                logger.warning("%s Falling back to %s.", defect, self._shown(newest.path))
        return newest

    def start(self, skip: Collection[Checkpoint] = ()) -> Checkpoint | None:
        """The checkpoint to go on from: as `latest`, but None only if nothing was published.

        Raises:
            CheckpointDamagedError: Checkpoints were published, and none of them is whole.
        """
        newest = self.latest(skip)
        published = [] if newest is not None else self.published()
        if not published:
            return newest
        state_file = self._shown(self._state_file.url)
        raise CheckpointDamagedError(
            self._shown(published[-1].path),
            f"{self._files.defect_of(published[-1]) or 'it proved damaged'}, and no other checkpoint that {state_file} "
            f"names is whole. Bring the files back, or delete {state_file} to train from the beginning.",
        )

    def with_newest(self, use: Callable[[Checkpoint | None], T]) -> T:
        """What `use` returns for the checkpoint to go on from, whose files stay meanwhile; None stands for none.

        If `use` finds the checkpoint damaged, or gone, it is called again with the one before, and the log says so.

        Raises:
            CheckpointDamagedError: Checkpoints were published, and none of them is whole.
            Exception: What else `use` raises.
        """
        unusable: list[Checkpoint] = []
        while True:
            newest = self.start(unusable)
            if newest is None:
                return use(None)
            with self.reading(newest):
                # Pruned while we began to read: then there is a newer one.
                if newest not in self.published():
                    continue
                try:
                    return use(newest)
                except CheckpointNotFoundError as error:
                    if error.checkpoint_path != self._shown(newest.path):
                        raise
                    logger.warning("%s Looking for the one before.", error)
            unusable.append(newest)

    @contextlib.contextmanager
    def reading(self, checkpoint: Checkpoint | None) -> Iterator[None]:
        """Within it no training run deletes the files of `checkpoint`, if it was still published at the beginning.

        Where this process may not write, or the checkpoint lies elsewhere, nothing is promised.
        """
        if checkpoint is None or not self._is_below_model_dir(checkpoint):
            yield
            return
        mark = None
        try:
            mark = self._marks.reading(checkpoint.name)
        except Exception as error:  # Stores raise what they like, and whoever may only read shall read.
            logger.info("%s is read without a mark: %s", self._shown(checkpoint.path), self._shown(str(error)))
        try:
            yield
        finally:
            if mark is not None:
                with self._warning_of_errors(f"remove {mark}"):
                    self._marks.remove(mark)

    def published(self) -> list[Checkpoint]:
        """What the state file names, whole or not; the current checkpoint last, before it the others, oldest first."""
        return [published.checkpoint for published in self._state_file.ledger().published]

    def position_in(self, checkpoint: Checkpoint | None) -> Position | None:
        """Where in its input the run was that saved `checkpoint`; None if nobody said.

        Raises:
            CheckpointDamagedError: The manifest is not there, or not what was published.
        """
        manifest = None if checkpoint is None else self._files.manifest(checkpoint)
        return None if manifest is None else position_from_json(manifest.position)

    def end_of_run(self) -> EndOfRun | None:
        """How the run that published the newest checkpoint has ended; None if it was cut off, or still goes on."""
        end = self._state_file.ledger().end
        return None if end is None else EndOfRun(int(end.get("run", 0)), bool(end.get("input_ended")))

    def find(self, checkpoint_path: str) -> Checkpoint:
        """The checkpoint that a caller names, published or not, and no other.

        Args:
            checkpoint_path: Local path or URL without suffix. A relative path is looked up from the current
                directory first, from model_dir then.

        Raises:
            CheckpointNotFoundError: It is not there.
            CheckpointDamagedError: It is not whole.
        """
        candidates = [Checkpoint.at(path) for path in self._readings_of(checkpoint_path)]
        for candidate in candidates:
            if self._files.sizes(candidate):
                checkpoint = self._as_published(candidate)
                defect = self._files.defect_of(checkpoint)
                if defect is None:
                    return checkpoint
                raise CheckpointDamagedError(
                    self._shown(checkpoint_path), f"{self._shown(checkpoint.path)} is not whole: {defect}."
                )
        tried = " or ".join(self._shown(candidate.path) for candidate in candidates)
        raise CheckpointNotFoundError(
            self._shown(checkpoint_path), f"there are no files {tried}.*. {self._advice(checkpoint_path)}"
        )

    def fetch(self, checkpoint: Checkpoint, local_dir: str) -> str:
        """A local prefix from which TensorFlow can restore `checkpoint`.

        Args:
            checkpoint: One that this class returned.
            local_dir: Where the files of a remote checkpoint are copied to, and verified meanwhile. Local ones stay
                where they are.

        Raises:
            CheckpointDamagedError: It is not whole, or not there any more.
        """
        local_path = self._storage.local_path(checkpoint.path)
        if local_path is not None:
            self._files.require_whole(checkpoint)
            return local_path
        os.makedirs(local_dir, exist_ok=True)
        local_prefix = os.path.join(local_dir, checkpoint.name)
        self._files.download(checkpoint, local_prefix)
        return local_prefix

    @contextlib.contextmanager
    def local_copy(self, checkpoint: Checkpoint) -> Iterator[str]:
        """A local prefix as `fetch` gives it, while it is needed; the processes of a node share what they fetch.

        Raises:
            CheckpointDamagedError: It is not whole, or not there any more.
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
        """What tells the checkpoint from any other, even of the same path: its index has a checksum of each value.

        Raises:
            CheckpointNotFoundError: It is not there any more.
        """
        try:
            index = self._storage.read_bytes(checkpoint.path + ".index")
        except FileNotFoundError as error:
            path = self._shown(checkpoint.path)
            raise CheckpointNotFoundError(path, "its index is not there any more.") from error
        return hashlib.sha256(index).hexdigest()

    # Writing

    def publish(
        self,
        local_prefix: str,
        step: int,
        retention: Retention,
        *,
        position: Position | None = None,
        fence: Callable[[], None] | None = None,
    ) -> Checkpoint:
        """Make files that a Saver wrote the newest checkpoint, then let `retention` prune the older ones.

        At every point at which this may stop, the state file names whole checkpoints only: those of before, or these
        and the new one. To save and publish again then succeeds, and clears away what was left. A published checkpoint
        of the same name is replaced. Checkpoints that are being read keep their files until a later publication, and
        so do those whose files cannot be deleted, with a warning.

        Args:
            local_prefix: Local path without suffix, which ends with ``-<step>``. Its last part becomes the
                checkpoint's name in model_dir. The files may be moved away.
            step: The global step of the checkpoint.
            retention: Decides which older checkpoints go.
            position: Where in its input training is.
            fence: Raises if this process may write no more. It is called before the first write, and before and
                after each write of the state file; what it raises ends the publication there. With one, model_dir is
                this process's own, and what it published last is published still (see `reassert`).

        Raises:
            CheckpointDamagedError: The files at `local_prefix` are not whole, or not what arrived in the store.
            ValueError: `local_prefix` is named for another step, or lies in model_dir already.
        """
        local_prefix = os.path.abspath(local_prefix)
        name = os.path.basename(local_prefix)
        self._check_prefix(local_prefix, step)
        writer = f"{socket.gethostname()}:{os.getpid()}"
        at = None if position is None else position.to_json()
        manifest = Manifest(step, records_of(local_prefix), writer, self._attempt, at)
        digest = manifest_module.digest_of(manifest.to_bytes())
        target = Checkpoint(self._url(name), step, digest)
        stand_in = Checkpoint(self._url(f"{name}-replacement-{step}"), step, digest)

        if fence is None:
            fence = _no_fence
        else:
            self.reassert(fence)
        ledger = self._state_file.ledger()
        now = self._clock()
        wanted = ledger.without(target).without(stand_in).plus(target, now)
        pruning = retention.prune(wanted.published, wanted.last_preserved_timestamp)
        leaving = [published.checkpoint for published in pruning.delete]
        self._marks.publishing([each.name for each in (target, stand_in, *filter(self._is_below_model_dir, leaving))])
        if ledger.names(target):
            # Files cannot be swapped all at once, the state file can: it names the copy while they change.
            self._files.put(local_prefix, stand_in, manifest, move=False)
            self._state_file.write(ledger.without(target).without(stand_in).plus(stand_in, now), fence)
        self._files.put(local_prefix, target, manifest, move=True)
        self._files.require_whole(target)
        kept = Ledger(pruning.keep, pruning.last_preserved_timestamp)
        self._state_file.write(kept, fence)
        self._clear(kept)
        return target

    def conclude(self, end: EndOfRun, fence: Callable[[], None] | None = None) -> None:
        """Notes how the run that published the newest checkpoint has ended; the next publication forgets it."""
        ledger = self._state_file.ledger()
        if ledger.published:
            self._state_file.write(replace(ledger, end=asdict(end)), fence or _no_fence)

    def reassert(self, fence: Callable[[], None]) -> None:
        """Publishes again what `publish` published last, if an earlier writer's late write has taken its place.

        For the owner of model_dir, whose fence shows that whatever else the state file says is no newer.

        Args:
            fence: As in `publish`.
        """
        fence()
        self._state_file.reassert(fence)

    def _check_prefix(self, local_prefix: str, step: int) -> None:
        if Checkpoint.at(local_prefix).step != step:
            raise ValueError(
                f"Expected a prefix that ends with -{step}, the global step, but received {local_prefix!r}."
            )
        if os.path.dirname(local_prefix) == self._storage.local_path(self._model_dir):
            raise ValueError(
                f"Expected files outside of model_dir, but received {local_prefix!r}. Save them in a staging_dir()."
            )

    def _clear(self, ledger: Ledger) -> None:
        """Deletes what publications have marked and the state file does not name, unless it is being read."""
        with self._warning_of_errors("clear away old files"):
            listing = self._storage.list_dir(self._model_dir)
            published = {published.checkpoint.name for published in ledger.published}
            being_read = self._marks.being_read(listing)
            for mark, names in self._marks.debris(listing).items():
                unneeded = names - published
                if all([self._deleted(name, listing) for name in unneeded - being_read]) and unneeded.isdisjoint(
                    being_read
                ):
                    self._marks.remove(mark)
            self._storage.remove_stale_temporaries(self._model_dir, _STALE_SECS)

    def _deleted(self, name: str, listing: Sequence[str]) -> bool:
        """Deletes the files of a checkpoint that nobody needs; False if that failed."""
        checkpoint = Checkpoint.at(self._url(name))
        with self._warning_of_errors(f"delete all files of the old checkpoint {name}"):
            self._files.delete(checkpoint, suffixes_in(listing, checkpoint))
            return True
        return False

    @contextlib.contextmanager
    def _warning_of_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Stores raise what they like, and no training should end for it.
            logger.warning("Could not %s in %s: %s", what, self._shown(self._model_dir), self._shown(str(error)))

    def write_text(self, name: str, text: str) -> None:
        """Create or replace a small file of model_dir, such as graph.pbtxt."""
        self._storage.write_bytes(self._url(name), text.encode())

    def staging_dir(self) -> contextlib.AbstractContextManager[str]:
        """A new local directory for a Saver to write to; it goes at the end, and those that the dead left go, too.

        For a local model_dir it is a hidden one inside, so that `publish` renames instead of copying.
        """
        local_path = self._storage.local_path(self._model_dir)
        if local_path is None:
            return scratch_dir(tempfile.gettempdir(), "ray-estimator-saving-")
        return scratch_dir(local_path, ".saving-")

    # What is whole

    def _newest_whole(self, skip: Collection[Checkpoint]) -> tuple[Checkpoint | None, list[str]]:
        """The newest that is whole, and what is wrong with newer ones."""
        newest: Checkpoint | None = None
        defects: list[str] = []
        for _ in range(_LOOKS):
            state_file = self._state_file.content()
            newest, defects = self._first_whole(self._state_file.ledger_in(state_file), skip)
            # A training run may have pruned what we looked at.
            if not defects or self._state_file.content() == state_file:
                break
        return newest, defects

    def _first_whole(self, ledger: Ledger, skip: Collection[Checkpoint]) -> tuple[Checkpoint | None, list[str]]:
        defects: list[str] = []
        for published in reversed(ledger.published):
            checkpoint = published.checkpoint
            if checkpoint in skip:
                continue
            defect = self._files.defect_of(checkpoint)
            if defect is None:
                return checkpoint, defects
            defects.append(f"The published checkpoint {self._shown(checkpoint.path)} is not whole: {defect}.")
        return None, defects

    # Names

    def _url(self, name: str) -> str:
        return self._storage.join(self._model_dir, name)

    def _shown(self, text: str) -> str:
        return self._storage.redacted(text)

    def _is_below_model_dir(self, checkpoint: Checkpoint) -> bool:
        """Whether it is this directory's own: another's may be needed by its own run."""
        return checkpoint.path.startswith(self._url(""))

    def _as_published(self, checkpoint: Checkpoint) -> Checkpoint:
        """`checkpoint` with its manifest: by the state file if that names it, else by what lies beside it."""
        named = (published for published in self.published() if published == checkpoint)
        return next(named, None) or self._files.with_manifest(checkpoint)

    def _readings_of(self, checkpoint_path: str) -> list[str]:
        given = self._storage.normalize(checkpoint_path)
        below = self._state_file.absolute(os.path.expanduser(checkpoint_path))
        return [given] if given == below else [given, below]

    def _advice(self, checkpoint_path: str) -> str:
        if has_suffix(checkpoint_path):
            return "Leave the suffix out: name it like model.ckpt-100."
        published = ", ".join(checkpoint.name for checkpoint in self.published())
        return f"Published in {self._shown(self._model_dir)}: {published or 'nothing'}."


def checkpoint_at(path: str, storage: Storage) -> Checkpoint:
    """The checkpoint that `path` stands for: itself, the newest of a model_dir, or the variables of a SavedModel.

    Raises:
        CheckpointNotFoundError: There is none, or it is not whole.
    """
    variables = storage.join(storage.normalize(path), "variables", "variables")
    if storage.exists(f"{variables}.index"):
        return Checkpoint.at(variables)
    store = CheckpointStore(path, storage)
    return store.latest() or store.find(path)


def _no_fence() -> None:
    """Lets everybody write."""
