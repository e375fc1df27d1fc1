"""Checkpoints in a model_dir on any store, in TensorFlow's own layout.

    model_dir/
      model.ckpt-100.data-00000-of-00001
      model.ckpt-100.meta                   optional
      model.ckpt-100.index
      checkpoint                            the state file: which checkpoints are published, oldest first

A checkpoint is published by one write, that of the state file, after all its other files are in place; it is
unpublished the same way before any of its files is deleted. So at every moment the state file names whole
checkpoints. It names them by paths relative to model_dir, which may therefore be moved.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ray_estimator._checkpoint_state import UNKNOWN_TIME, CheckpointState
from ray_estimator._storage import Storage
from ray_estimator.errors import CheckpointNotFoundError

_STATE_FILE = "checkpoint"
_STEP = re.compile(r"-(\d+)$")
_SUFFIX = re.compile(r"\.(index|meta|data-\d+-of-(\d+))")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it travels between driver, workers and tasks.

    Attributes:
        path: Local path or URL up to and without the suffixes: ``.../model.ckpt-100``.
        step: Its global step, from the number at the end of `path`; 0 if there is none.
    """

    path: str
    step: int

    @classmethod
    def at(cls, path: str) -> Checkpoint:
        """The checkpoint at `path`, which need not exist."""
        step = _STEP.search(path)
        return cls(path, int(step.group(1)) if step else 0)


@dataclass(frozen=True)
class Published:
    """A checkpoint in the state file.

    Attributes:
        checkpoint: The checkpoint.
        timestamp: When it was published, in seconds since the epoch; 0 if its writer did not say.
    """

    checkpoint: Checkpoint
    timestamp: float


@dataclass(frozen=True)
class Pruning:
    """What a `Retention` decides.

    Attributes:
        keep: What stays published, oldest first.
        preserve: What is no longer published, but whose files stay for good.
        delete: What is no longer published, and whose files go.
        last_preserved_timestamp: The time from which the next `every_n_hours` count, in seconds since the epoch.
    """

    keep: tuple[Published, ...]
    preserve: tuple[Published, ...]
    delete: tuple[Published, ...]
    last_preserved_timestamp: float | None


@dataclass(frozen=True)
class Retention:
    """Which checkpoints to keep. It decides, and acts on nothing.

    Means what `tf.compat.v1.train.Saver` means by `max_to_keep` and `keep_checkpoint_every_n_hours`, except that a
    restart does not begin to count the hours anew: they are those on the clock since the first checkpoint.

    Attributes:
        newest: How many checkpoints stay published; None or 0 for all.
        every_n_hours: Of those that leave, one for every so many hours keeps its files; None for none.
    """

    newest: int | None = 5
    every_n_hours: float | None = None

    def __post_init__(self) -> None:
        if self.newest is not None and self.newest < 0:
            raise ValueError(f"keep_checkpoint_max should be >= 0, or None to keep all, but received {self.newest}.")
        if self.every_n_hours is not None and self.every_n_hours <= 0:
            raise ValueError(f"keep_checkpoint_every_n_hours should be > 0 or None, but received {self.every_n_hours}.")

    def prune(self, published: Sequence[Published], last_preserved_timestamp: float | None) -> Pruning:
        """Decide what becomes of `published`.

        Args:
            published: All published checkpoints, oldest first.
            last_preserved_timestamp: As the last decision returned it; None at the first one, which starts to count
                at the newest checkpoint.
        """
        leaving = len(published) - self.newest if self.newest else 0
        keep, leave = tuple(published[max(leaving, 0) :]), published[: max(leaving, 0)]
        if self.every_n_hours is None or not published:
            return Pruning(keep, (), tuple(leave), last_preserved_timestamp)
        interval = self.every_n_hours * 3600
        last = published[-1].timestamp if last_preserved_timestamp is None else last_preserved_timestamp
        preserve, delete = [], []
        for candidate in leave:
            if candidate.timestamp > last + interval:
                preserve.append(candidate)
                last += interval
            else:
                delete.append(candidate)
        return Pruning(keep, tuple(preserve), tuple(delete), last)


class CheckpointStore:
    """The checkpoints of one model_dir.

    Keeps nothing in memory but its arguments: every call reads the store. Any process may read; `publish` and
    `write_text` are for the one process that writes, in training the chief.

    Args:
        model_dir: Local path or URL.
        storage: Opens it.
        clock: Seconds since the epoch, for the timestamps of checkpoints.
    """

    def __init__(self, model_dir: str, storage: Storage, clock: Callable[[], float] = time.time) -> None:
        self._storage = storage
        self._model_dir = storage.normalize(model_dir)
        self._clock = clock

    def latest(self) -> Checkpoint | None:
        """The newest published checkpoint that is whole; None if there is none.

        A published checkpoint that lacks files is passed over, with a warning. Files that the state file does not
        name do not count, unless the state file itself is damaged: then the newest whole checkpoint in model_dir
        counts as the published one, with a warning.
        """
        damaged: list[str] = []
        for checkpoint in reversed(self.published()):
            defect = self._defect_of(checkpoint)
            if defect is None:
                for passed in damaged:
                    logger.warning("%s Falling back to %s.", passed, checkpoint.path)
                return checkpoint
            damaged.append(f"The published checkpoint {checkpoint.path} is not whole: {defect}.")
        for passed in damaged:
            logger.warning("%s There is no whole one to fall back to.", passed)
        return None

    def start(self) -> Checkpoint | None:
        """The checkpoint that training goes on from: the newest whole one; None if nothing was published.

        Raises:
            CheckpointNotFoundError: Checkpoints were published, and none of them is whole.
        """
        newest = self.latest()
        published = [] if newest is not None else self.published()
        if not published:
            return newest
        state_file = self._storage.join(self._model_dir, _STATE_FILE)
        raise CheckpointNotFoundError(
            published[-1].path,
            f"{self._defect_of(published[-1])}, and no other checkpoint that {state_file} names is whole. Bring the "
            f"files back, or delete {state_file} to train from the beginning.",
        )

    def published(self) -> list[Checkpoint]:
        """What the state file names, whole or not; the current checkpoint last, before it the others, oldest first."""
        return [published.checkpoint for published in self._read_ledger().published]

    def find(self, checkpoint_path: str) -> Checkpoint:
        """The checkpoint that a caller names, published or not, and no other.

        Args:
            checkpoint_path: Local path or URL without suffix. A relative path is looked up from the current
                directory first, from model_dir then.

        Raises:
            CheckpointNotFoundError: It is not there, or not whole.
        """
        candidates = [Checkpoint.at(path) for path in self._readings_of(checkpoint_path)]
        for checkpoint in candidates:
            if self._suffixes_of(checkpoint):
                defect = self._defect_of(checkpoint)
                if defect is None:
                    return checkpoint
                raise CheckpointNotFoundError(checkpoint_path, f"{checkpoint.path} is not whole: {defect}.")
        tried = " or ".join(checkpoint.path for checkpoint in candidates)
        raise CheckpointNotFoundError(checkpoint_path, f"there are no files {tried}.*. {self._advice(checkpoint_path)}")

    def publish(
        self, local_prefix: str, step: int, retention: Retention, *, fence: Callable[[], None] | None = None
    ) -> Checkpoint:
        """Make files that a Saver wrote the newest checkpoint, then let `retention` prune the older ones.

        At every point at which this may stop, the state file names whole checkpoints only: those of before, or these
        and the new one. To save and publish again then succeeds. A published checkpoint of the same name is replaced.
        Old files that cannot be deleted are left behind, with a warning.

        Args:
            local_prefix: Local path without suffix, which ends with ``-<step>``. Its last part becomes the
                checkpoint's name in model_dir. The files may be moved away.
            step: The global step of the checkpoint.
            retention: Decides which older checkpoints go.
            fence: Raises if this process may write no more. It is called before the first write, and before and
                after each write of the state file; what it raises ends the publication there.

        Raises:
            CheckpointNotFoundError: The files at `local_prefix` are not whole.
            ValueError: `local_prefix` is named for another step, or lies in model_dir already.
        """
        new = self.find(os.path.abspath(local_prefix))
        if new.step != step:
            raise ValueError(
                f"Expected a prefix that ends with -{step}, the global step, but received {local_prefix!r}."
            )
        target = self._checkpoint(_name_of(new))
        stand_in = self._checkpoint(f"{_name_of(new)}-replacement-{step}")
        if new == target:
            raise ValueError(
                f"Expected files outside of model_dir, but received {local_prefix!r}. Save them in a staging_dir()."
            )

        fence = fence or _no_fence
        fence()
        self._storage.make_dir(self._model_dir)
        ledger = self._read_ledger()
        if ledger.names(target):
            # Files cannot be swapped all at once, the state file can: it names the copy while they change.
            self._put(new, stand_in, move=False)
            ledger = ledger.without(target).plus(stand_in, self._clock())
            self._write_ledger(ledger, fence)
        self._put(new, target, move=True)
        ledger = ledger.without(target).without(stand_in).plus(target, self._clock())
        pruning = retention.prune(ledger.published, ledger.last_preserved_timestamp)
        self._write_ledger(_Ledger(pruning.keep, pruning.last_preserved_timestamp), fence)
        for unpublished in (stand_in, *(published.checkpoint for published in pruning.delete)):
            self._delete_or_warn(unpublished)
        return target

    def fetch(self, checkpoint: Checkpoint, local_dir: str) -> str:
        """A local prefix from which TensorFlow can restore `checkpoint`.

        Args:
            checkpoint: One that this class returned.
            local_dir: Where the files of a remote checkpoint are copied to. Local ones stay where they are.

        Raises:
            CheckpointNotFoundError: It is not there any more, or not whole.
        """
        defect = self._defect_of(checkpoint)
        if defect is not None:
            raise CheckpointNotFoundError(checkpoint.path, f"it is not whole: {defect}.")
        local_path = self._storage.local_path(checkpoint.path)
        if local_path is not None:
            return local_path
        local_prefix = os.path.join(local_dir, _name_of(checkpoint))
        for suffix in _index_last(self._suffixes_of(checkpoint)):
            self._storage.get_file(checkpoint.path + suffix, local_prefix + suffix)
        return local_prefix

    def fingerprint(self, checkpoint: Checkpoint) -> str:
        """What tells the checkpoint from any other, even of the same path: its index has a checksum of each value.

        Raises:
            CheckpointNotFoundError: It is not there any more.
        """
        try:
            index = self._storage.read_bytes(checkpoint.path + ".index")
        except FileNotFoundError as error:
            raise CheckpointNotFoundError(checkpoint.path, "its index is not there any more.") from error
        return hashlib.sha256(index).hexdigest()

    def write_text(self, name: str, text: str) -> None:
        """Create or replace a small file of model_dir, such as graph.pbtxt."""
        self._storage.write_bytes(self._storage.join(self._model_dir, name), text.encode())

    @contextlib.contextmanager
    def staging_dir(self) -> Iterator[str]:
        """A new local directory for a Saver to write to; it goes at the end.

        For a local model_dir it is a hidden one inside, so that `publish` renames instead of copying.
        """
        local_path = self._storage.local_path(self._model_dir)
        if local_path is None:
            with tempfile.TemporaryDirectory(prefix="ray_estimator-saving-") as directory:
                yield directory
            return
        directory = os.path.join(local_path, f".saving-{uuid.uuid4().hex}")
        self._storage.make_dir(directory)
        try:
            yield directory
        finally:
            self._storage.remove_dir(directory)

    # The state file.

    def _read_ledger(self) -> _Ledger:
        try:
            content = self._storage.read_bytes(self._storage.join(self._model_dir, _STATE_FILE))
        except FileNotFoundError:
            return _Ledger((), None)
        try:
            state = CheckpointState.from_text(content.decode())
        except ValueError as error:
            return self._ledger_without_state(error)
        checkpoints = [self._listed_as(path) for path in state.paths]
        published = [Published(each, at) for each, at in zip(checkpoints, state.timestamps, strict=True)]
        return _Ledger(tuple(published), state.last_preserved_timestamp)

    def _listed_as(self, path: str) -> Checkpoint:
        """The checkpoint that the state file names so: the one in model_dir, if it has one of that name.

        Savers with absolute paths list where a checkpoint was when it was saved; since then model_dir may have been
        moved, or copied.
        """
        listed = Checkpoint.at(self._storage.normalize(self._below_model_dir(path)))
        here = self._checkpoint(_name_of(listed))
        return here if listed != here and self._defect_of(here) is None else listed

    def _ledger_without_state(self, error: ValueError) -> _Ledger:
        """What to take for published when the state file is damaged.

        Just the newest whole checkpoint: one that is not published is never pruned, and older ones may have been
        preserved on purpose.
        """
        state_file = self._storage.join(self._model_dir, _STATE_FILE)
        names = self._storage.list_dir(self._model_dir)
        found = [self._checkpoint(name.removesuffix(".index")) for name in names if name.endswith(".index")]
        whole = [checkpoint for checkpoint in found if self._defect_of(checkpoint) is None]
        if not whole:
            logger.warning("%s is damaged (%s), and there is no whole checkpoint beside it.", state_file, error)
            return _Ledger((), None)
        newest = max(whole, key=lambda checkpoint: checkpoint.step)
        logger.warning("%s is damaged (%s). Using the newest whole checkpoint, %s.", state_file, error, newest.path)
        return _Ledger((Published(newest, UNKNOWN_TIME),), None)

    def _write_ledger(self, ledger: _Ledger, fence: Callable[[], None]) -> None:
        state = CheckpointState(
            tuple(self._relative_to_model_dir(published.checkpoint.path) for published in ledger.published),
            tuple(published.timestamp for published in ledger.published),
            ledger.last_preserved_timestamp,
        )
        fence()
        self.write_text(_STATE_FILE, state.to_text())
        fence()

    def _below_model_dir(self, path: str) -> str:
        return path if os.path.isabs(path) or "://" in path else self._storage.join(self._model_dir, path)

    def _relative_to_model_dir(self, path: str) -> str:
        return path.removeprefix(self._storage.join(self._model_dir, ""))

    # The other files.

    def _checkpoint(self, name: str) -> Checkpoint:
        return Checkpoint.at(self._storage.join(self._model_dir, name))

    def _suffixes_of(self, checkpoint: Checkpoint) -> list[str]:
        """What follows the prefix in the names of the checkpoint's files, sorted."""
        name = _name_of(checkpoint)
        files = self._storage.list_dir(checkpoint.path.removesuffix(name))
        suffixes = [file.removeprefix(name) for file in files if file.startswith(name)]
        return [suffix for suffix in suffixes if _SUFFIX.fullmatch(suffix)]

    def _defect_of(self, checkpoint: Checkpoint) -> str | None:
        """Which files are missing, in words; None if the checkpoint is whole."""
        missing = _missing_suffixes(self._suffixes_of(checkpoint))
        return f"it misses {', '.join(_name_of(checkpoint) + suffix for suffix in missing)}" if missing else None

    def _put(self, source: Checkpoint, target: Checkpoint, move: bool) -> None:
        """Put the files of the local `source` in the place of `target`, which is not published."""
        self._delete(target)
        for suffix in _index_last(self._suffixes_of(source)):
            self._storage.put_file(source.path + suffix, target.path + suffix, move=move)

    def _delete(self, checkpoint: Checkpoint) -> None:
        # The index goes first, so that what is left looks like what it is.
        for suffix in reversed(_index_last(self._suffixes_of(checkpoint))):
            self._storage.remove(checkpoint.path + suffix)

    def _delete_or_warn(self, checkpoint: Checkpoint) -> None:
        if self._relative_to_model_dir(checkpoint.path) == checkpoint.path:
            return  # Another directory's checkpoint, which its own run may need.
        try:
            self._delete(checkpoint)
        except Exception as error:  # Stores raise what they like, and no training should end for it.
            logger.warning("Could not delete all files of the old checkpoint %s: %s", checkpoint.path, error)

    # What a caller names.

    def _readings_of(self, checkpoint_path: str) -> list[str]:
        given = self._storage.normalize(checkpoint_path)
        below = self._storage.normalize(self._below_model_dir(os.path.expanduser(checkpoint_path)))
        return [given] if given == below else [given, below]

    def _advice(self, checkpoint_path: str) -> str:
        if _SUFFIX.search(checkpoint_path):
            return "Leave the suffix out: name it like model.ckpt-100."
        published = ", ".join(_name_of(checkpoint) for checkpoint in self.published())
        return f"Published in {self._model_dir}: {published or 'nothing'}."


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


@dataclass(frozen=True)
class _Ledger:
    """The published checkpoints, the current one last."""

    published: tuple[Published, ...]
    last_preserved_timestamp: float | None

    def names(self, checkpoint: Checkpoint) -> bool:
        return any(published.checkpoint == checkpoint for published in self.published)

    def without(self, checkpoint: Checkpoint) -> _Ledger:
        others = tuple(published for published in self.published if published.checkpoint != checkpoint)
        return _Ledger(others, self.last_preserved_timestamp)

    def plus(self, checkpoint: Checkpoint, timestamp: float) -> _Ledger:
        return _Ledger((*self.published, Published(checkpoint, timestamp)), self.last_preserved_timestamp)


def _no_fence() -> None:
    """Lets everybody write."""


def _name_of(checkpoint: Checkpoint) -> str:
    return checkpoint.path.rpartition("/")[2]


def _index_last(suffixes: Sequence[str]) -> list[str]:
    """Data before the index, without which they are no checkpoint."""
    return sorted(suffixes, key=lambda suffix: (suffix == ".index", suffix))


def _missing_suffixes(suffixes: Sequence[str]) -> list[str]:
    """The files that a checkpoint lacks: its index, and any data shard of a set that has begun."""
    matches = [_SUFFIX.fullmatch(suffix) for suffix in suffixes]
    totals = sorted({match.group(2) for match in matches if match and match.group(2)}) or ["00001"]
    needed = [".index", *(f".data-{shard:05d}-of-{total}" for total in totals for shard in range(int(total)))]
    return [suffix for suffix in needed if suffix not in suffixes]
