"""Splits a batch of predictions into rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def rows_of(batch: Any) -> Iterator[Any]:
    """Yield the rows of a batch: the items of an array, or a dict of items for a dict of arrays.

    Raises:
        ValueError: The arrays of a dict differ in length, or one is a scalar.
    """
    if not isinstance(batch, dict):
        _require_rows("The prediction", batch)
        yield from batch
        return
    length = common_length(batch)
    for index in range(length):
        yield {key: value[index] for key, value in batch.items()}


def num_rows_of(batch: Any) -> int:
    """Return the number of rows of a batch; raises as `rows_of` does."""
    return common_length(batch) if isinstance(batch, dict) else len(batch)


def common_length(batch: dict[str, Any]) -> int:
    """Return the number of rows that all arrays of a batch have; raises as `rows_of` does."""
    length: int | None = None
    for key, value in batch.items():
        _require_rows(key, value)
        if length is not None and value.shape[0] != length:
            raise ValueError(
                f"Batch length of predictions should be same. {key} has different batch length than others. Pass "
                "yield_single_examples=False to get whole batches."
            )
        length = value.shape[0]
    return length or 0


def _require_rows(name: str, value: Any) -> None:
    if value.shape == ():
        raise ValueError(
            f"{name} is a scalar, {value!r}, which has no rows. Pass yield_single_examples=False to get whole batches, "
            "or give it a batch dimension in model_fn."
        )
