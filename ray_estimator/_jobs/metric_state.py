"""Metric state of row ranges, and how it is merged. Pure: NumPy only, so that the driver can do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class MetricState:
    """Metric variables after a range of rows, by name.

    Attributes:
        values: Variable values.
        initial: The same before the first batch; merging counts them once.
        unmergeable: Why the states of ranges may not be added up; None if they may.
        num_batches: Batches that went in.
    """

    values: Mapping[str, Any]
    initial: Mapping[str, Any]
    unmergeable: str | None
    num_batches: int


def merged(states: Sequence[MetricState]) -> MetricState:
    """The state as if one pass had seen every range: increments add up, initial values count once."""
    first = states[0]
    values = {
        name: _total(initial, [state.values[name] for state in states]) for name, initial in first.initial.items()
    }
    return MetricState(values, first.initial, None, sum(state.num_batches for state in states))


def _total(initial: Any, values: Sequence[Any]) -> Any:
    start = np.asarray(initial)
    if not np.issubdtype(start.dtype, np.number):
        return initial  # truths and texts have no sum, and no update writes to them
    # Sums of floats in double precision: nothing is lost to the number of ranges.
    wide = np.result_type(start, np.float64) if np.issubdtype(start.dtype, np.inexact) else start.dtype
    total = start.astype(wide) + sum(np.asarray(value).astype(wide) - start for value in values)
    return np.asarray(total, dtype=start.dtype)
