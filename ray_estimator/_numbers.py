"""Check that an argument is a positive number."""

from __future__ import annotations

import numbers
from typing import Any


def check_number(
    name: str,
    value: Any,
    *,
    integer: bool = False,
    zero_allowed: bool = False,
    or_none: str = "",
    requirement: str = "",
) -> None:
    """Check that `value` is a number greater than 0. A bool is not a number.

    Args:
        name: The argument, as the message names it.
        value: The value of the argument.
        integer: Whether it must be an integer.
        zero_allowed: Whether 0 is valid.
        or_none: What the messages say about None, for example ``" or None"``. None itself is valid if it is set.
        requirement: First part of the ValueError's message; by default "`name` should be > 0".

    Raises:
        TypeError: `value` is not a number, or not an integer.
        ValueError: `value` is out of range.
    """
    if value is None and or_none:
        return
    kind, wanted = (numbers.Integral, "an int") if integer else (numbers.Real, "a number")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} must be {wanted}{or_none}, got {value!r}.")
    number: Any = value
    if not (number >= 0 if zero_allowed else number > 0):
        bound = ">= 0" if zero_allowed else "> 0"
        raise ValueError(f"{requirement or f'{name} should be {bound}{or_none}'}, got {value!r}.")
