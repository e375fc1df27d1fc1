"""Row sources for the arguments of `dataset_input_fn`."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ray_estimator._data.position import InputSource
from ray_estimator._data.sharding import Shuffle
from ray_estimator._runtime.data.fingerprint import fingerprint
from ray_estimator._runtime.data.rows import RowSource
from ray_estimator.config import RunConfig
from ray_estimator.inputs import DatasetInput


def training_rows(
    dataset: Any, schema: pa.Schema, columns: Iterable[str], dataset_input: DatasetInput, config: RunConfig
) -> RowSource:
    """Return the rows to read in TRAIN: `num_epochs` passes, or endlessly, and possibly shuffled."""
    rows = _rows(dataset, columns, dataset_input, dataset_input.batch_size, config)
    seed, shuffle = None, None
    if dataset_input.shuffle:
        seed = next((seed for seed in (dataset_input.seed, config.tf_random_seed) if seed is not None), None)
        assert dataset_input.shuffle_buffer_rows is not None, "dataset_input_fn sets it."
        shuffle = Shuffle(secrets.randbits(63) if seed is None else seed, dataset_input.shuffle_buffer_rows)
    parts = fingerprint(dataset, schema, rows.columns)
    parts["shuffle"] = "none" if shuffle is None else f"among {shuffle.buffer_rows} rows"
    return replace(
        rows,
        num_epochs=dataset_input.num_epochs,
        shuffle=shuffle,
        drop_remainder=dataset_input.drop_remainder,
        source=InputSource(parts, seed, endless=dataset_input.num_epochs is None, resume=dataset_input.resume),
    )


def rows_in_order(
    dataset: Any, columns: Iterable[str], dataset_input: DatasetInput, batch_size: int, config: RunConfig
) -> RowSource:
    """Return the rows to read in EVAL and PREDICT: in order, to the last row."""
    return _rows(dataset, columns, dataset_input, batch_size, config)


def _rows(
    dataset: Any, columns: Iterable[str], dataset_input: DatasetInput, batch_size: int, config: RunConfig
) -> RowSource:
    return RowSource(
        dataset,
        tuple(columns),
        batch_size,
        num_epochs=dataset_input.num_epochs or 1,
        timeout_secs=config.input_timeout_secs,
    )
