"""A Ray Dataset whose rows are predictions for the rows of another one."""

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
from ray_estimator._runtime.data.rows import RowSource, projected
from ray_estimator._runtime.data.streaming import in_order

if TYPE_CHECKING:
    import pyarrow as pa

_SINGLE = "predictions"


def predicted_dataset(
    job: PredictJob, rows: RowSource, keep_columns: Sequence[str], rows_of_a_task: int, **task_options: Any
) -> Dataset:
    """The predictions of `job` for `rows`, lazily, in their order.

    Args:
        job: How to predict.
        rows: For what.
        keep_columns: Columns of `rows` that stay beside the predictions.
        rows_of_a_task: About how many rows a task takes.
        task_options: Ray's options of the tasks; `size` is how many run at a time, None for as many as fit.
    """
    columns = tuple(dict.fromkeys([*rows.columns, *keep_columns]))
    size = task_options.pop("size")
    return in_order(projected(rows.dataset, columns)).map_batches(
        functools.partial(
            _predict_table, job, task_options["num_cpus"], rows.columns, rows.batch_size, tuple(keep_columns)
        ),
        batch_size=-(-rows_of_a_task // rows.batch_size) * rows.batch_size,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=size),
        udf_modifying_row_count=False,
        **task_options,
    )


def _predict_table(
    job: PredictJob,
    num_cpus: float,
    columns: Sequence[str],
    batch_size: int,
    keep_columns: Sequence[str],
    table: pa.Table,
) -> pa.Table:
    """The predictions for some rows, and what is kept of them. Runs in a task of Ray Data."""
    with uninterrupted():
        entrypoints.import_engine(num_cpus)
    block = Block(0, table.num_rows, lambda: table.select(list(columns)))
    predicted = entrypoints.predict_range(job, lambda: rank_tables([block], Sharding(0, 1, batch_size)))
    if predicted.one_task_reason is not None:
        raise ValueError(
            f"predict_dataset predicts in many tasks, which cannot be, since {predicted.one_task_reason}. Use predict."
        )
    kept = table.select(list(keep_columns))
    predictions = BlockAccessor.batch_to_block(_joined(predicted.batches, table.num_rows))
    for name in predictions.column_names:
        if name in keep_columns:
            raise ValueError(f"keep_columns has {name!r}, which is also the name of a prediction. Rename one of them.")
        kept = kept.append_column(name, predictions.column(name))
    return kept


def _joined(batches: Sequence[Any], num_rows: int) -> dict[str, Any]:
    """The predictions of all batches, by name."""
    named = [batch if isinstance(batch, dict) else {_SINGLE: batch} for batch in batches]
    joined = {name: np.concatenate([batch[name] for batch in named]) for name in (named[0] if named else ())}
    if common_length(joined) != num_rows:
        raise ValueError(
            f"predict_dataset needs one prediction for each row, but model_fn made {common_length(joined)} for "
            f"{num_rows} rows. Use predict(yield_single_examples=False)."
        )
    return joined
