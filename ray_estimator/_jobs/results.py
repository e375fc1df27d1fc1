"""The results of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainResult:
    """The state of a training worker after its last step.

    Attributes:
        step: The global step.
        loss: The loss of the last step.
        steps_made: Number of steps since the last start of the group.
        cut_short: On the chief, whether training stopped before its end because the driver asked for it.
        examples_per_sec: Examples per second over all ranks, without the first step, the start and the end.
        published_step: On the chief, the step of the newest checkpoint. None: there is no checkpoint.
    """

    step: int
    loss: float | None
    steps_made: int
    cut_short: bool = False
    examples_per_sec: float | None = None
    published_step: int | None = None


@dataclass(frozen=True)
class PredictedRange:
    """The predictions for a range of rows.

    Attributes:
        batches: One value per batch, in order: an array, or a dict of arrays.
        one_task_reason: Why the prediction must run as one task; `batches` is empty then. None: it need not.
    """

    batches: Sequence[Any]
    one_task_reason: str | None = None
