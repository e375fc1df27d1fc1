"""What jobs return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class TrainResult:
    """What a training worker returns: its rank's view after the last step.

    Attributes:
        step: The global step.
        loss: The loss of the last step.
        steps_made: How many steps this start of the group made.
        cut_short: Of the chief: whether the run stopped before its end because the worker was asked to.
        examples_per_sec: Its rate over all ranks and all its steps but the first, without start and end.
        published_step: The newest checkpoint, on the chief; None if there is none.
    """

    step: int
    loss: float | None
    steps_made: int
    cut_short: bool = False
    examples_per_sec: float | None = None
    published_step: int | None = None


@dataclass(frozen=True)
class PredictedRange:
    """Predictions of a range of rows.

    Attributes:
        batches: One value for each batch, in order: an array, or a dict of arrays.
        one_task_because: Why the prediction must run as one task instead; then `batches` is empty.
    """

    batches: Sequence[Any]
    one_task_because: str | None = None
