"""Published checkpoints, and the decision which of them to keep. Values without side effects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_estimator._numbers import check_number

_STEP = re.compile(r"-(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A reference to a checkpoint, sent between driver, workers and tasks.

    Attributes:
        path: Local path or URL without suffix: ``.../model.ckpt-100``.
        step: Global step, from the number at the end of `path`; 0 if there is none.
        manifest: Digest of its manifest, which distinguishes it from others at the same path; None if TensorFlow
            published it without a manifest.
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
        """Return a reference to `path`, which need not exist."""
        step = _STEP.search(path)
        return cls(path, int(step.group(1)) if step else 0)


@dataclass(frozen=True)
class Published:
    """A checkpoint in the state file.

    Attributes:
        checkpoint: The checkpoint.
        timestamp: Publication time in seconds since the epoch; 0 if unknown.
    """

    checkpoint: Checkpoint
    timestamp: float


@dataclass(frozen=True)
class Pruning:
    """The decision of a `Retention`.

    Attributes:
        keep: Checkpoints that stay published, oldest first.
        preserve: Checkpoints to unpublish while keeping their files permanently.
        delete: Checkpoints to unpublish and delete.
        last_preserved_timestamp: Start of the current `every_n_hours` interval, in seconds since the epoch.
    """

    keep: tuple[Published, ...]
    preserve: tuple[Published, ...]
    delete: tuple[Published, ...]
    last_preserved_timestamp: float | None


@dataclass(frozen=True)
class Retention:
    """The policy that selects the checkpoints to keep. It has no side effects.

    Same semantics as `max_to_keep` and `keep_checkpoint_every_n_hours` of `tf.compat.v1.train.Saver`, except that a
    restart does not reset the hours: they are wall-clock hours since the first checkpoint.

    Attributes:
        newest: Number of checkpoints that stay published; None or 0: all.
        every_n_hours: Interval at which one of the other checkpoints keeps its files; None: none of them does.
    """

    newest: int | None = 5
    every_n_hours: float | None = None

    def __post_init__(self) -> None:
        check_number("keep_checkpoint_max", self.newest, zero_allowed=True, or_none=" or None")
        check_number("keep_checkpoint_every_n_hours", self.every_n_hours, or_none=" or None")

    def prune(self, published: Sequence[Published], last_preserved_timestamp: float | None) -> Pruning:
        """Decide which of `published` to keep.

        Args:
            published: All published checkpoints, oldest first.
            last_preserved_timestamp: The value from the previous decision; None for the first one, whose interval
                starts at the newest checkpoint.
        """
        excess = len(published) - self.newest if self.newest else 0
        keep, old = tuple(published[max(excess, 0) :]), published[: max(excess, 0)]
        if self.every_n_hours is None or not published:
            return Pruning(keep, (), tuple(old), last_preserved_timestamp)
        interval = self.every_n_hours * 3600
        last = published[-1].timestamp if last_preserved_timestamp is None else last_preserved_timestamp
        preserve, delete = [], []
        for candidate in old:
            if candidate.timestamp > last + interval:
                preserve.append(candidate)
                last += interval
            else:
                delete.append(candidate)
        return Pruning(keep, tuple(preserve), tuple(delete), last)


@dataclass(frozen=True)
class CheckpointList:
    """The published checkpoints, the current one last.

    Attributes:
        published: The checkpoints.
        last_preserved_timestamp: As in `Pruning`.
        end: How the run that published the current one ended, as JSON; None if it was interrupted.
    """

    published: tuple[Published, ...]
    last_preserved_timestamp: float | None
    end: Mapping[str, Any] | None = None

    def contains(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint at this path is published."""
        return any(published.checkpoint == checkpoint for published in self.published)

    def without(self, checkpoint: Checkpoint) -> CheckpointList:
        """Return the list without `checkpoint`."""
        others = tuple(published for published in self.published if published.checkpoint != checkpoint)
        return CheckpointList(others, self.last_preserved_timestamp)

    def with_current(self, checkpoint: Checkpoint, timestamp: float) -> CheckpointList:
        """Return the list with `checkpoint` appended as the current one."""
        return CheckpointList((*self.published, Published(checkpoint, timestamp)), self.last_preserved_timestamp)
