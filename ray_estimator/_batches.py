"""Predictions of a batch as rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def rows_of(batch: Any) -> Iterator[Any]:
    """The rows of a batch: of an array its items, of a dict of arrays dicts of items.

    Raises:
        ValueError: The arrays of a dict differ in length.
    """
    if not isinstance(batch, dict):
        yield from batch
        return
    length = _common_length(batch)
    for index in range(length):
        yield {key: value[index] for key, value in batch.items()}


def _common_length(batch: dict[str, Any]) -> int:
    length: int | None = None
    for key, value in batch.items():
        if length is not None and value.shape[0] != length:
            raise ValueError(
                f"Batch length of predictions should be same. {key} has different batch length than others. Pass "
                "yield_single_examples=False to get whole batches."
            )
        length = value.shape[0]
    return length or 0
