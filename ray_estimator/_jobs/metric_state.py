"""The metric state of a range of rows, and how states are merged. NumPy only, so that the driver can merge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class MetricState:
    """The values of metric variables after a range of rows, by name.

    Attributes:
        values: Values after the last batch.
        initial: Values before the first batch; a merged state counts them once.
        unmergeable: Why the states of ranges cannot be added up. None: they can.
        num_batches: Number of batches in the range.
    """

    values: Mapping[str, Any]
    initial: Mapping[str, Any]
    unmergeable: str | None
    num_batches: int


def merged(states: Sequence[MetricState]) -> MetricState:
    """Return the state of a single pass over all ranges: the increments of all, added to the initial values."""
    first = states[0]
    values = {
        name: _total(initial, [state.values[name] for state in states]) for name, initial in first.initial.items()
    }
    return MetricState(values, first.initial, None, sum(state.num_batches for state in states))


def _total(initial: Any, values: Sequence[Any]) -> Any:
    start = np.asarray(initial)
    if not np.issubdtype(start.dtype, np.number):
        return initial  # Booleans and strings cannot be summed; metrics do not update them.
    # Floats are summed in double precision, so that the number of ranges does not change the result.
    wide = np.result_type(start, np.float64) if np.issubdtype(start.dtype, np.inexact) else start.dtype
    total = start.astype(wide) + sum(np.asarray(value).astype(wide) - start for value in values)
    return np.asarray(total, dtype=start.dtype)
