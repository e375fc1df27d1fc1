"""Splits a Ray Dataset into ranges of whole batches, one per task."""

from __future__ import annotations

import math
from collections.abc import Iterator

import ray

from ray_estimator._data.sharding import aligned_ranges
from ray_estimator._runtime.data.rows import BlockRef, RangeOfRows, RowSource

_ROWS = 16_384
_BATCHES = 16
_GROWTH = 8
_STORE_SHARE = 1 / 4


def least_rows(batch_size: int) -> int:
    """Return how many rows a task needs to make its own cost small in comparison."""
    return max(_ROWS, _BATCHES * batch_size)


def most_rows(batch_size: int) -> int:
    """Return how many rows a task gets at most, so that tasks spread evenly over the CPUs."""
    return _GROWTH * least_rows(batch_size)


def ranges(rows: RowSource, in_flight: int, steps: int | None) -> Iterator[RangeOfRows]:
    """Yield consecutive ranges as Ray Data produces their blocks. Executes Ray Data in this process.

    Args:
        rows: The rows to read.
        in_flight: Maximum number of ranges at a time. Together they use at most a part of the object store.
        steps: Number of batches. None: all.
    """
    seen: dict[int, BlockRef] = {}

    def lengths() -> Iterator[int]:
        for index, block in enumerate(rows.block_refs()):
            seen[index] = block
            yield block.num_rows

    def target_rows() -> Iterator[int]:
        # Ranges grow with the number of rows before them. Large ranges cost less, and small ones at the start keep
        # all tasks busy.
        least, most, before = least_rows(rows.batch_size), most_rows(rows.batch_size), 0
        while True:
            wanted = min(max(least, before // (2 * in_flight)), most)
            row_bytes = max(block.row_bytes for block in seen.values())
            target = int(min(wanted, max(1, range_bytes / row_bytes))) if row_bytes else wanted
            yield target
            before += target

    def piece(index: int, start: int, stop: int) -> BlockRef:
        block = seen[index]
        return block._replace(epoch=0, start=block.start + start, stop=block.start + stop)

    range_bytes = ray.cluster_resources().get("object_store_memory", math.inf) * _STORE_SHARE / in_flight
    limit = None if steps is None else steps * rows.batch_size
    for pieces in aligned_ranges(lengths(), rows.batch_size, target_rows(), limit):
        blocks = tuple(piece(*each) for each in pieces)
        yield RangeOfRows(blocks, rows.columns, rows.batch_size, rows.timeout_secs)
        # Release the blocks before the end of this range.
        for passed in [index for index in seen if index < pieces[-1].source]:
            del seen[passed]
