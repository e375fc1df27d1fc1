"""Input throughput: rows of a Ray Dataset into `session.run`, in one process, against hand-written pipelines.

The session takes each batch and does nothing with it. Peers: a generator over pyarrow tables with `rebatch`, for data
in memory; draining the same dataset block by block without TensorFlow, for data read from Parquet; and `Dataset.to_tf`.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import ray
import tensorflow as tf
import tensorflow.compat.v1 as v1
from _side_by_side import Comparison, arguments, report
from ray.data.extensions import ArrowTensorArray

from ray_estimator import ModeKeys, RunConfig, dataset_input_fn
from ray_estimator._data.columns import column_specs
from ray_estimator._engine.input.rows import dataset_of_rows
from ray_estimator._jobs.jobs import RowSpec
from ray_estimator._runtime.data.schema import arrow_schema
from ray_estimator._runtime.data.source import rows_in_order

BATCH = 1024
BLOCKS = 8
WAITING_STEPS = 300
FLOAT_ROWS, IMAGE_ROWS, STRING_ROWS, MIXED_ROWS = 4_000_000, 60_000, 500_000, 60_000


def floats(rng: np.random.Generator, rows: int) -> pa.Table:
    return pa.table({f"x{number}": rng.random(rows, np.float32) for number in range(20)})


def images(rng: np.random.Generator, rows: int) -> pa.Table:
    pixels = rng.integers(0, 256, (rows, 64, 64, 3), np.uint8)
    return pa.table({"image": ArrowTensorArray.from_numpy(pixels), "label": np.arange(rows)})


def strings(rng: np.random.Generator, rows: int) -> pa.Table:
    words = np.array([f"word-{number}" for number in range(1000)])
    return pa.table({f"s{number}": words[rng.integers(0, 1000, rows)] for number in range(4)})


def mixed(rng: np.random.Generator, rows: int) -> pa.Table:
    """300 columns: floats, ints, strings, and lists of up to 9 ints."""
    words = pa.array([f"word-{number}" for number in range(1000)])
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 10, rows))]).astype(np.int32)
    columns: dict[str, Any] = {f"s{number}": words.take(pa.array(rng.integers(0, 1000, rows))) for number in range(20)}
    for number in range(20):
        columns[f"l{number}"] = pa.ListArray.from_arrays(offsets, rng.integers(0, 100, offsets[-1]))
    columns |= {f"x{number}": rng.random(rows, np.float32) for number in range(130)}
    return pa.table(columns | {f"i{number}": rng.integers(0, 100, rows) for number in range(130)})


def in_memory(table: pa.Table) -> Any:
    size = -(-table.num_rows // BLOCKS)
    return ray.data.from_arrow([table.slice(start, size) for start in range(0, table.num_rows, size)])


# Pipelines: each returns a tf.data.Dataset of batches in the default graph.


def ours(dataset: Any) -> tf.data.Dataset:
    schema = arrow_schema(dataset)
    given = dataset_input_fn(dataset, batch_size=BATCH)
    rows = rows_in_order(dataset, schema.names, given, BATCH, RunConfig())
    spec = RowSpec(column_specs(schema, schema.names), {}, single_label=False, batch_size=BATCH)
    return dataset_of_rows(rows.tables, spec, None, ModeKeys.TRAIN)[0]


def by_hand(table: pa.Table) -> tf.data.Dataset:
    """A hand-written pipeline over rows in this process."""
    names = table.column_names
    size = -(-table.num_rows // BLOCKS)

    def blocks() -> Iterator[dict[str, Any]]:
        for start in range(0, table.num_rows, size):
            block = table.slice(start, size)
            yield {name: block.column(name).to_numpy() for name in names}

    signature = {name: tf.TensorSpec([None], tf.float32) for name in names}
    return tf.data.Dataset.from_generator(blocks, output_signature=signature).rebatch(BATCH).prefetch(2)


def to_tf(dataset: Any) -> tf.data.Dataset:
    names = dataset.schema().names
    return dataset.to_tf(names[:-1], names[-1], batch_size=BATCH)


# Measurements: rows per second from the start of the iterator to the last row.


def into_session(make: Callable[[Any], tf.data.Dataset], data: Any, rows: int) -> float:
    with tf.Graph().as_default(), v1.Session() as session:
        iterator = v1.data.make_initializable_iterator(make(data))
        take = session.make_callable(tf.group(*tf.nest.flatten(iterator.get_next(), expand_composites=True)))
        began = time.perf_counter()
        session.run(iterator.initializer)
        try:
            while True:
                take()
        except tf.errors.OutOfRangeError:
            return rows / (time.perf_counter() - began)


def wait_of_a_step(make: Callable[[Any], tf.data.Dataset], data: Any) -> float:
    """Average time in microseconds that a step of 5 ms waits for its batch."""
    with tf.Graph().as_default(), v1.Session() as session:
        iterator = v1.data.make_initializable_iterator(make(data))
        take = session.make_callable(tf.group(*tf.nest.flatten(iterator.get_next(), expand_composites=True)))
        session.run(iterator.initializer)
        take()
        waited = 0.0
        for _ in range(WAITING_STEPS):
            time.sleep(0.005)
            began = time.perf_counter()
            take()
            waited += time.perf_counter() - began
        return waited / WAITING_STEPS * 1e6


def drained(dataset: Any, rows: int) -> float:
    began = time.perf_counter()
    seen = sum(block.num_rows for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    assert seen == rows
    return rows / (time.perf_counter() - began)


def alternated(programs: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Measurements of ours and the peer, alternated, after one warm-up round of both."""
    rates: list[list[float]] = [[], []]
    for number in range(-1, rounds):
        for place in (0, 1) if number % 2 else (1, 0):
            rate = programs[place]()
            if number >= 0:
                rates[place].append(rate)
    return rates


def compared(what: str, programs: Sequence[Callable[[], float]], goal: float, rounds: int) -> Comparison:
    """Compare our rate with the peer's."""
    rates = [[rate / 1e3 for rate in each] for each in alternated(programs, rounds)]
    print(f"{what}: done", flush=True)
    return Comparison(what, rates[0], rates[1], unit="k rows/s", goal=goal, at_least=True)


def main() -> int:
    options = arguments(__doc__, rounds=5)
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rng, rounds = np.random.default_rng(0), options.rounds
    table = floats(rng, FLOAT_ROWS)
    dataset = in_memory(table)
    pipeline = lambda: into_session(ours, dataset, FLOAT_ROWS)  # noqa: E731
    comparisons = [
        compared(
            "20 float columns in memory, against pyarrow by hand",
            [pipeline, lambda: into_session(by_hand, table, FLOAT_ROWS)],
            0.8,
            rounds,
        ),
        compared(
            "20 float columns in memory, against Dataset.to_tf",
            [pipeline, lambda: into_session(to_tf, dataset, FLOAT_ROWS)],
            8.0,
            rounds,
        ),
    ]
    waits = alternated([lambda: wait_of_a_step(ours, dataset), lambda: wait_of_a_step(to_tf, dataset)], rounds)
    what = "wait for the batch in a step of 5 ms, against Dataset.to_tf"
    comparisons.append(Comparison(what, waits[0], waits[1], unit="µs", goal=1.0))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(BLOCKS):
            part = table.slice(number * FLOAT_ROWS // BLOCKS, FLOAT_ROWS // BLOCKS)
            pyarrow.parquet.write_table(part, Path(folder, f"{number}.parquet"))
        comparisons.append(
            compared(
                "20 float columns from Parquet, against draining the dataset block by block",
                [
                    lambda: into_session(ours, ray.data.read_parquet(folder), FLOAT_ROWS),
                    lambda: drained(ray.data.read_parquet(folder), FLOAT_ROWS),
                ],
                0.85,
                rounds,
            )
        )
    for what, make, rows, goal in (
        ("images of 64x64x3 uint8", images, IMAGE_ROWS, 2.0),
        ("4 string columns", strings, STRING_ROWS, 5.0),
        ("300 mixed columns", mixed, MIXED_ROWS, 5.0),
    ):
        data = in_memory(make(rng, rows))
        programs = [
            lambda data=data, rows=rows: into_session(ours, data, rows),
            lambda data=data, rows=rows: into_session(to_tf, data, rows),
        ]
        comparisons.append(compared(f"{what}, against Dataset.to_tf", programs, goal, rounds))
    ray.shutdown()
    return report(comparisons, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
