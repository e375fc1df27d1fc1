"""Adds up the metric state of row ranges. Pure: NumPy only, so that the driver can do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_estimator._jobs import MetricState


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
        return initial  # no sum of truths or texts: that they never change was shown before
    return np.asarray(start + sum(np.asarray(value) - start for value in values), dtype=start.dtype)


def difference_from_sum(both: Any, first: Any, second: Any, initial: Any) -> bool:
    """Whether a variable after two batches is not the sum of what each of them alone made of it."""
    arrays = [np.asarray(value) for value in (both, first, second, initial)]
    if any(array.shape != arrays[0].shape or not np.issubdtype(array.dtype, np.number) for array in arrays):
        return not all(np.array_equal(array, arrays[0]) for array in arrays)
    together, one, other, start = (array.astype(np.float64) for array in arrays)
    scale = float(np.max(np.abs(together), initial=1.0, where=np.isfinite(together)))
    with np.errstate(invalid="ignore"):  # an infinite initial value, as of a minimum, is no reason to warn
        total = one + other - start
    return not np.allclose(together, total, rtol=1e-5, atol=1e-6 * scale, equal_nan=True)
