"""Merging the metric states of row ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_estimator._jobs.metric_state import MetricState, merged


def state(value: Any, initial: Any, num_batches: int = 1) -> MetricState:
    return MetricState({"v": np.asarray(value)}, {"v": np.asarray(initial)}, None, num_batches)


def test_increments_add_up_and_initial_values_count_once() -> None:
    result = merged([state([11.0, 10.0], [10.0, 10.0], 3), state([12.0, 15.0], [10.0, 10.0], 4)])

    assert result.values["v"].tolist() == [13.0, 15.0]
    assert result.initial["v"].tolist() == [10.0, 10.0]
    assert result.num_batches == 7
    assert result.unmergeable is None


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8"])
def test_merging_keeps_the_dtype(dtype: str) -> None:
    result = merged(
        [state(np.array([5], dtype), np.array([1], dtype)), state(np.array([7], dtype), np.array([1], dtype))]
    )

    assert result.values["v"].dtype == dtype
    assert result.values["v"].tolist() == [11]


def test_a_scalar_stays_a_scalar() -> None:
    value = merged([state(np.float32(2), np.float32(0)), state(np.float32(3), np.float32(0))]).values["v"]

    assert np.shape(value) == ()
    assert value == 5


@pytest.mark.parametrize("constant", [np.array([True, False]), np.array(b"text"), np.array([b"a", b"bc"], object)])
def test_values_that_are_not_numbers_are_kept(constant: Any) -> None:
    value = merged([state(constant, constant), state(constant, constant)]).values["v"]

    np.testing.assert_array_equal(value, constant)


@given(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=30),
    st.integers(-50, 50),
    st.data(),
)
def test_any_split_into_ranges_gives_the_state_of_a_single_pass(
    increments: list[int], initial: int, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(increments)), max_size=5)))
    ranges = [increments[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(increments)], strict=True)]

    result = merged([state(np.int64(initial + sum(part)), np.int64(initial), len(part)) for part in ranges])

    assert result.values["v"] == initial + sum(increments)
    assert result.num_batches == len(increments)


def test_many_ranges_lose_no_precision() -> None:
    result = merged([state(np.float32(2**24), np.float32(0)), *([state(np.float32(1), np.float32(0))] * 64)])

    assert result.values["v"] == 2**24 + 64
