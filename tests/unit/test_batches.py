"""Splitting a batch of predictions into rows."""

from __future__ import annotations

import numpy as np
import pytest

from ray_estimator._data.batches import rows_of


def test_an_array_is_split_into_items() -> None:
    batch = np.arange(6).reshape(3, 2)

    assert [row.tolist() for row in rows_of(batch)] == [[0, 1], [2, 3], [4, 5]]


def test_a_dict_is_split_into_dicts_of_items() -> None:
    batch = {"a": np.array([1, 2]), "b": np.array([[3.0], [4.0]])}

    rows = list(rows_of(batch))

    assert [{key: value.tolist() for key, value in row.items()} for row in rows] == [
        {"a": 1, "b": [3.0]},
        {"a": 2, "b": [4.0]},
    ]


@pytest.mark.parametrize("batch", [np.zeros([0, 2]), {"a": np.zeros([0])}, {}])
def test_an_empty_batch_has_no_rows(batch: object) -> None:
    assert list(rows_of(batch)) == []


def test_arrays_of_a_dict_must_have_the_same_length() -> None:
    batch = {"a": np.zeros([2]), "b": np.zeros([3])}

    with pytest.raises(ValueError, match=r"should be same\. b has different batch length.*yield_single_examples=False"):
        list(rows_of(batch))


@pytest.mark.parametrize(("batch", "name"), [({"a": np.float32(1)}, "a"), (np.float32(1), "The prediction")])
def test_a_scalar_has_no_rows(batch: object, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is a scalar.*yield_single_examples=False"):
        list(rows_of(batch))
