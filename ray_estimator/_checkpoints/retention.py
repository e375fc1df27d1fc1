"""Which checkpoints are published, and which of them stay. Values that decide, and act on nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_STEP = re.compile(r"-(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it travels between driver, workers and tasks.

    Attributes:
        path: Local path or URL up to and without the suffixes: ``.../model.ckpt-100``.
        step: Its global step, from the number at the end of `path`; 0 if there is none.
        manifest: The digest of its manifest, which tells it from any other of the same path; None if it has no
            manifest, since TensorFlow published it.
    """

    path: str
    step: int
    manifest: str | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

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


@dataclass(frozen=True)
class Ledger:
    """The published checkpoints, the current one last.

    Attributes:
        published: The checkpoints.
        last_preserved_timestamp: As in `Pruning`.
        end: How the run that published the current one ended, as JSON takes it; None if it was cut off.
    """

    published: tuple[Published, ...]
    last_preserved_timestamp: float | None
    end: Mapping[str, Any] | None = None

    def names(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint of this path is published."""
        return any(published.checkpoint == checkpoint for published in self.published)

    def without(self, checkpoint: Checkpoint) -> Ledger:
        """The ledger after `checkpoint` is unpublished."""
        others = tuple(published for published in self.published if published.checkpoint != checkpoint)
        return Ledger(others, self.last_preserved_timestamp)

    def plus(self, checkpoint: Checkpoint, timestamp: float) -> Ledger:
        """The ledger after `checkpoint` is published as the current one."""
        return Ledger((*self.published, Published(checkpoint, timestamp)), self.last_preserved_timestamp)
