"""The position of a training run in its input, saved with each checkpoint so that the next run resumes exactly there.

`beginning` and `iterators_of` decide where a run starts. The driver calls them before it starts anything, the chief
again for the checkpoint that it restores, with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ray_estimator.errors import InputChangedError

EXACT, RESTART, ROWS = "exact", "restart", "rows"
WAYS_TO_RESUME = (EXACT, RESTART, ROWS)


@dataclass(frozen=True)
class InputSource:
    """The properties of a training input that determine its row order.

    Attributes:
        parts: Identifies the input: a description of each part, by a readable name.
        seed: The seed of the shuffle. None: no fixed seed.
        endless: Whether the input is repeated endlessly.
        resume: How to continue after an earlier run: one of `WAYS_TO_RESUME`.
    """

    parts: Mapping[str, str]
    seed: int | None
    endless: bool
    resume: str = EXACT


@dataclass(frozen=True)
class InputPosition:
    """How much of its input a run had consumed when a checkpoint was saved.

    Attributes:
        run: The run, by the generation of its lease.
        rows: Rows consumed by all ranks together since the start of the first epoch.
        rows_per_epoch: Rows in an epoch. None: no epoch has ended yet.
        seed: The seed of the shuffle.
        parts: As in `InputSource`.
    """

    run: int
    rows: int
    rows_per_epoch: int | None
    seed: int | None
    parts: Mapping[str, str]

    @classmethod
    def from_json(cls, fields: Any) -> InputPosition | None:
        """Return the position that `to_json` encoded; None for anything else."""
        try:
            rows_per_epoch, seed = fields["rows_per_epoch"], fields["seed"]
            return cls(int(fields["run"]), int(fields["rows"]), rows_per_epoch, seed, dict(fields["parts"]))
        except (KeyError, TypeError, ValueError):
            return None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def after(self, rows: int, rows_per_epoch: int | None) -> InputPosition:
        """Return the position after `rows` more rows."""
        return replace(self, rows=self.rows + rows, rows_per_epoch=rows_per_epoch or self.rows_per_epoch)


@dataclass(frozen=True)
class IteratorPosition:
    """States that the iterators of an input_fn are saved with a checkpoint, one file per rank.

    Attributes:
        run: The run, by the generation of its lease.
        num_ranks: Number of ranks in the group.
    """

    run: int
    num_ranks: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"run": self.run, "iterators": self.num_ranks}

    def suffix(self, rank: int) -> str:
        """Return the suffix of a rank's file, after the checkpoint's prefix."""
        return f".input-{rank:05d}-of-{self.num_ranks:05d}"


Position = InputPosition | IteratorPosition


def position_from_json(fields: Any) -> Position | None:
    """Return the position of either kind that `to_json` encoded; None for anything else."""
    try:
        return IteratorPosition(int(fields["run"]), int(fields["iterators"]))
    except (KeyError, TypeError, ValueError):
        return InputPosition.from_json(fields)


@dataclass(frozen=True)
class EndOfRun:
    """How the run that saved the newest checkpoint ended, if it was not interrupted.

    Attributes:
        run: The run, by the generation of its lease.
        input_ended: Whether the input was exhausted.
    """

    run: int
    input_ended: bool


def beginning(source: InputSource, found: Position | None, end: EndOfRun | None, run: int) -> InputPosition:
    """Return the position at which `run` starts to read.

    It resumes an interrupted run, and an endless input. After a run that ended, a finite input is read from its first
    row again.

    Args:
        source: The input.
        found: The position in the checkpoint. None: no position.
        end: How the run that saved the checkpoint ended. None: it was interrupted.
        run: This run, by the generation of its lease.

    Raises:
        InputChangedError: The run was interrupted, and the input has changed since.
    """
    first_row = InputPosition(run, 0, None, source.seed, dict(source.parts))
    if not isinstance(found, InputPosition):
        return first_row
    if found.run == run:
        return found
    resumed = replace(found, run=run, parts=dict(source.parts))
    if source.resume == RESTART:
        return first_row
    if source.resume == ROWS:
        return replace(resumed, seed=source.seed)
    has_ended = end is not None and end.run == found.run
    is_exhausted = end is not None and end.input_ended
    if has_ended and (is_exhausted or not source.endless):
        return first_row
    changes = changes_between(found, source)
    if not changes:
        return resumed
    if has_ended:
        return first_row
    raise InputChangedError(found.rows, changes)


def iterators_of(found: Position | None, end: EndOfRun | None, run: int, num_ranks: int) -> IteratorPosition | None:
    """Return the iterators that `run` resumes; None if it starts with new ones.

    Only an interrupted run is resumed. After a run that ended, input_fn starts at its first batch, as in tf.estimator.

    Args:
        found: The position in the checkpoint. None: no position.
        end: How the run that saved the checkpoint ended. None: it was interrupted.
        run: This run, by the generation of its lease.
        num_ranks: Number of ranks in this run.
    """
    if not isinstance(found, IteratorPosition) or found.num_ranks != num_ranks:
        return None
    has_ended = end is not None and end.run == found.run
    return None if has_ended and found.run != run else found


def changes_between(found: InputPosition, source: InputSource) -> dict[str, tuple[str, str]]:
    """Return (before, now) of each part of the input that has changed, by name."""
    names = sorted({*found.parts, *source.parts})
    pairs = {name: (found.parts.get(name, "nothing"), source.parts.get(name, "nothing")) for name in names}
    if source.seed is not None:
        pairs["seed"] = (str(found.seed), str(source.seed))
    return {name: (before, now) for name, (before, now) in pairs.items() if before != now}
