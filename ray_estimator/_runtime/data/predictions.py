"""Predictions for the rows of a Ray Dataset, as another Ray Dataset."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.data import Dataset, TaskPoolStrategy
from ray.data.block import BlockAccessor

from ray_estimator._data.batches import common_length
from ray_estimator._data.sharding import Block, Sharding, rank_tables
from ray_estimator._engine import entrypoints
from ray_estimator._jobs.jobs import PredictJob
from ray_estimator._process.signals import uninterrupted
from ray_estimator._runtime.data.ranges import most_rows
from ray_estimator._runtime.data.rows import RowSource, projected
from ray_estimator._runtime.data.streaming import in_order

if TYPE_CHECKING:
    import pyarrow as pa

_SINGLE = "predictions"


def predicted_dataset(
    job: PredictJob, rows: RowSource, keep_columns: Sequence[str], rows_per_call: int, **task_options: Any
) -> Dataset:
    """Return the predictions of `job` for `rows` as a lazy Dataset, in the order of the rows.

    Args:
        job: The prediction job.
        rows: The rows to predict for.
        keep_columns: Columns of `rows` to keep alongside the predictions.
        rows_per_call: Rows that a task predicts at a time, rounded up to whole batches.
        task_options: Ray's options for the tasks. `size` is the number of concurrent tasks, None for as many as fit.
    """
    columns = tuple(dict.fromkeys([*rows.columns, *keep_columns]))
    size = task_options.pop("size")
    # Ray Data runs one task per block, so a few large blocks would leave CPUs idle.
    blocks = in_order(projected(rows.dataset, columns)).repartition(
        target_num_rows_per_block=_whole_batches(most_rows(rows.batch_size), rows.batch_size)
    )
    return blocks.map_batches(
        functools.partial(
            _predict_table, job, task_options["num_cpus"], rows.columns, rows.batch_size, tuple(keep_columns)
        ),
        batch_size=_whole_batches(rows_per_call, rows.batch_size),
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=size),
        udf_modifying_row_count=False,
        **task_options,
    )


def _whole_batches(num_rows: int, batch_size: int) -> int:
    return -(-num_rows // batch_size) * batch_size


def _predict_table(
    job: PredictJob,
    num_cpus: float,
    columns: Sequence[str],
    batch_size: int,
    keep_columns: Sequence[str],
    table: pa.Table,
) -> pa.Table:
    """Return the predictions for some rows with the columns to keep. Runs in a task of Ray Data."""
    with uninterrupted():
        entrypoints.import_engine(num_cpus)
    block = Block(0, table.num_rows, lambda: table.select(list(columns)))
    predicted = entrypoints.predict_range(job, lambda: rank_tables([block], Sharding(0, 1, batch_size)))
    if predicted.one_task_reason is not None:
        raise ValueError(
            f"predict_dataset cannot split this prediction into tasks: {predicted.one_task_reason}. Use predict."
        )
    kept = table.select(list(keep_columns))
    predictions = BlockAccessor.batch_to_block(_joined(predicted.batches, table.num_rows))
    for name in predictions.column_names:
        if name in keep_columns:
            raise ValueError(f"keep_columns has {name!r}, which is also a prediction. Rename one of them.")
        kept = kept.append_column(name, predictions.column(name))
    return kept


def _joined(batches: Sequence[Any], num_rows: int) -> dict[str, Any]:
    """Concatenate the predictions of all batches, by name."""
    named = [batch if isinstance(batch, dict) else {_SINGLE: batch} for batch in batches]
    joined = {name: np.concatenate([batch[name] for batch in named]) for name in (named[0] if named else ())}
    if common_length(joined) != num_rows:
        raise ValueError(
            f"predict_dataset needs one prediction per row, got {common_length(joined)} for {num_rows} rows. Use "
            "predict(yield_single_examples=False)."
        )
    return joined
