"""From what `dataset_input_fn` was given to what is read."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from ray_estimator._rows import Shuffle
from ray_estimator._runtime.rows import RowSource
from ray_estimator.config import RunConfig
from ray_estimator.inputs import DatasetInput
from ray_estimator.spec import ModeKeys


def row_source(
    dataset: Any, columns: Iterable[str], given: DatasetInput, mode: str, batch_size: int, config: RunConfig
) -> RowSource:
    """What to read in `mode`: shuffled and for ever in TRAIN, in order and once elsewhere, unless told otherwise."""
    trains = mode == ModeKeys.TRAIN
    return RowSource(
        dataset,
        tuple(columns),
        batch_size,
        num_epochs=given.num_epochs if trains else given.num_epochs or 1,
        shuffle=_shuffle(given, config) if trains else None,
        drop_remainder=given.drop_remainder and trains,
        timeout_secs=config.input_timeout_secs,
    )


def _shuffle(given: DatasetInput, config: RunConfig) -> Shuffle | None:
    if not given.shuffle:
        return None
    seed = next((seed for seed in (given.seed, config.tf_random_seed) if seed is not None), None)
    assert given.shuffle_buffer_rows is not None, "dataset_input_fn fills it in."
    return Shuffle(secrets.randbits(63) if seed is None else seed, given.shuffle_buffer_rows)
