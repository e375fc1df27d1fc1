"""Where in its input a training run is: kept with each checkpoint, so that the next run goes on with the very next row.

A value, and the one rule that says where a run begins. The driver applies it before it starts anything, the chief once
more to the checkpoint that it really restores; both come to the same.
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
    """What a training run reads, as far as it decides which row is where.

    Attributes:
        parts: What tells this input from another, each part under a name that a person knows.
        seed: Of the shuffle; None if there is none.
        endless: Whether it is read for ever.
        resume: What to do where an earlier run was: one of `WAYS_TO_RESUME`.
    """

    parts: Mapping[str, str]
    seed: int | None
    endless: bool
    resume: str = EXACT


@dataclass(frozen=True)
class InputPosition:
    """How much of its input a run has consumed, when a checkpoint was saved.

    Attributes:
        run: Which driver's run, by its lease.
        rows: Rows that all ranks together have consumed since the first epoch began.
        rows_per_epoch: How many rows an epoch has; None as long as no epoch has ended.
        seed: Of the shuffle.
        parts: As `InputSource.parts`.
    """

    run: int
    rows: int
    rows_per_epoch: int | None
    seed: int | None
    parts: Mapping[str, str]

    @classmethod
    def from_json(cls, fields: Any) -> InputPosition | None:
        """What `to_json` made; None for anything else."""
        try:
            rows_per_epoch, seed = fields["rows_per_epoch"], fields["seed"]
            return cls(int(fields["run"]), int(fields["rows"]), rows_per_epoch, seed, dict(fields["parts"]))
        except (KeyError, TypeError, ValueError):
            return None

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    def after(self, rows: int, rows_per_epoch: int | None) -> InputPosition:
        """The position when `rows` more are consumed."""
        return replace(self, rows=self.rows + rows, rows_per_epoch=rows_per_epoch or self.rows_per_epoch)


@dataclass(frozen=True)
class IteratorPosition:
    """That the iterator of an input_fn lies beside a checkpoint, one for each rank.

    Attributes:
        run: Which driver's run, by its lease.
        num_ranks: How many ranks the group had.
    """

    run: int
    num_ranks: int

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"run": self.run, "iterators": self.num_ranks}

    def suffix(self, rank: int) -> str:
        """What follows the checkpoint's prefix in the name of a rank's file."""
        return f".input-{rank:05d}-of-{self.num_ranks:05d}"


Position = InputPosition | IteratorPosition


def position_from_json(fields: Any) -> Position | None:
    """What either kind's `to_json` made; None for anything else."""
    try:
        return IteratorPosition(int(fields["run"]), int(fields["iterators"]))
    except (KeyError, TypeError, ValueError):
        return InputPosition.from_json(fields)


@dataclass(frozen=True)
class EndOfRun:
    """How the run that saved the newest checkpoint ended, if it came to its end.

    Attributes:
        run: Which driver's run, by its lease.
        input_ended: Whether there was nothing left to read.
    """

    run: int
    input_ended: bool


def beginning(source: InputSource, found: Position | None, end: EndOfRun | None, run: int) -> InputPosition:
    """Where `run` begins to read, when it goes on from a checkpoint.

    A run that was cut off is gone on with, and an endless input goes on, too, where the last run stopped. A finite
    one is read anew by each run that follows one that came to its end.

    Args:
        source: What it reads.
        found: The position in the checkpoint; None if there is none.
        end: How the run ended that saved it; None if it was cut off.
        run: The number of this run.

    Raises:
        InputChangedError: A run was cut off, and the input is not the one that it had read.
    """
    anew = InputPosition(run, 0, None, source.seed, dict(source.parts))
    if not isinstance(found, InputPosition):
        return anew
    if found.run == run:
        return found
    goes_on = replace(found, run=run, parts=dict(source.parts))
    if source.resume == RESTART:
        return anew
    if source.resume == ROWS:
        return replace(goes_on, seed=source.seed)
    has_ended = end is not None and end.run == found.run
    was_read_to_its_end = end is not None and end.input_ended
    if has_ended and (was_read_to_its_end or not source.endless):
        return anew
    changes = changes_between(found, source)
    if not changes:
        return goes_on
    if has_ended:
        return anew
    raise InputChangedError(found.rows, changes)


def iterators_of(found: Position | None, end: EndOfRun | None, run: int, num_ranks: int) -> IteratorPosition | None:
    """What the iterators of `run` go on from: a run that was cut off; None if they begin anew.

    A run that follows one that came to its end calls input_fn for a new beginning, as in tf.estimator.

    Args:
        found: The position in the checkpoint; None if there is none.
        end: How the run ended that saved it; None if it was cut off.
        run: The number of this run.
        num_ranks: How many ranks it has.
    """
    if not isinstance(found, IteratorPosition) or found.num_ranks != num_ranks:
        return None
    has_ended = end is not None and end.run == found.run
    return None if has_ended and found.run != run else found


def changes_between(found: InputPosition, source: InputSource) -> dict[str, tuple[str, str]]:
    """What is different now, by name: how it was, and how it is."""
    names = sorted({*found.parts, *source.parts})
    pairs = {name: (found.parts.get(name, "nothing"), source.parts.get(name, "nothing")) for name in names}
    if source.seed is not None:
        pairs["seed"] = (str(found.seed), str(source.seed))
    return {name: (before, now) for name, (before, now) in pairs.items() if before != now}
