"""The check that an argument is a positive number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ray_estimator._numbers import check_number


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (0.5, {}),
        (np.int64(1), {"integer": True}),
        (0, {"zero_allowed": True}),
        (None, {"or_none": " or None"}),
    ],
)
def test_numbers_in_range_are_accepted(value: Any, options: dict[str, Any]) -> None:
    check_number("size", value, **options)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ("1", {}, "size must be a number, got '1'."),
        (True, {"integer": True}, "size must be an int, got True."),
        (1.5, {"integer": True, "or_none": " or None"}, "size must be an int or None, got 1.5."),
        (None, {}, "size must be a number, got None."),
    ],
)
def test_other_types_are_rejected(value: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as raised:
        check_number("size", value, **options)

    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (0, {}, "size should be > 0, got 0."),
        (-1, {"zero_allowed": True, "or_none": " or None"}, "size should be >= 0 or None, got -1."),
        (float("nan"), {}, "size should be > 0, got nan."),
        (0, {"requirement": "Must specify size > 0"}, "Must specify size > 0, got 0."),
    ],
)
def test_numbers_out_of_range_are_rejected(value: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"size") as raised:
        check_number("size", value, **options)

    assert str(raised.value) == message
