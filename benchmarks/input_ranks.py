"""Sharded input without TensorFlow: a Parquet dataset to 1, 2 and 4 consumers, against `Dataset.streaming_split`.

Each consumer is an actor that takes its share of every global batch and does nothing with it. Ours get exactly
their rows of each batch, in order; those of `streaming_split` get whichever blocks are ready.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import ray
from _side_by_side import Comparison, arguments, report

from ray_estimator._runtime.data.rows import BlockFeed, RowSource, blocks_from

BATCH = 1024
FILES, ROWS, COLUMNS = 8, 4_000_000, 20
TIMEOUT_SECS = 300.0


@ray.remote(num_cpus=0)
class Consumer:
    """Counts the rows that it gets."""

    def ours(self, source: RowSource, feed: Any, attempt: str, rank: int, num_ranks: int) -> int:
        refs = blocks_from(feed, attempt, rank, TIMEOUT_SECS, 0) if num_ranks > 1 else source.block_refs()
        return sum(table.num_rows for table in source.tables_of(rank, num_ranks, refs))

    def theirs(self, split: Any) -> int:
        return sum(block.num_rows for block in split.iter_batches(batch_size=None, batch_format="pyarrow"))


def ours(folder: str, consumers: list[Any]) -> float:
    dataset = ray.data.read_parquet(folder)
    columns = tuple(f"x{number}" for number in range(COLUMNS))
    source = RowSource(dataset, columns, BATCH // len(consumers), num_epochs=1, timeout_secs=TIMEOUT_SECS)
    feed = ray.remote(num_cpus=0)(BlockFeed).remote(source, len(consumers))
    ray.get(feed.__ray_ready__.remote())
    attempt, count = uuid.uuid4().hex, len(consumers)
    began = time.perf_counter()
    seen = ray.get([each.ours.remote(source, feed, attempt, rank, count) for rank, each in enumerate(consumers)])
    secs = time.perf_counter() - began
    ray.kill(feed)
    assert sum(seen) == ROWS
    return ROWS / secs


def theirs(folder: str, consumers: list[Any]) -> float:
    splits = ray.data.read_parquet(folder).streaming_split(len(consumers))
    began = time.perf_counter()
    seen = ray.get([each.theirs.remote(split) for each, split in zip(consumers, splits, strict=True)])
    secs = time.perf_counter() - began
    assert sum(seen) == ROWS
    return ROWS / secs


def write(folder: str) -> None:
    rng = np.random.default_rng(0)
    for number in range(FILES):
        columns = {f"x{column}": rng.random(ROWS // FILES, np.float32) for column in range(COLUMNS)}
        pyarrow.parquet.write_table(pa.table(columns), Path(folder, f"{number}.parquet"))


def main() -> int:
    options = arguments(__doc__, rounds=3)
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
        for count in (1, 2, 4):
            consumers = [Consumer.remote() for _ in range(count)]
            ray.get([each.__ray_ready__.remote() for each in consumers])
            rates: list[list[float]] = [[], []]
            for number in range(-1, options.rounds):
                for place in (0, 1) if number % 2 else (1, 0):
                    rate = (ours, theirs)[place](folder, consumers)
                    if number >= 0:
                        rates[place].append(rate / 1e3)
            what = f"{count} consumer{'s' if count > 1 else ''} of a Parquet dataset, against streaming_split"
            comparisons.append(Comparison(what, rates[0], rates[1], unit="k rows/s", goal=1.0, at_least=True))
            for each in consumers:
                ray.kill(each)
    ray.shutdown()
    return report(comparisons, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
