"""The Arrow schema of a Ray Dataset, looked up on the driver."""

from __future__ import annotations

import pyarrow as pa
import ray
from ray.data import Dataset


def ray_is_ready() -> None:
    """Connects to Ray, or starts it, if this process has not yet."""
    if not ray.is_initialized():
        ray.init()


def arrow_schema(dataset: Dataset) -> pa.Schema:
    """The schema of `dataset`; reads its first block if the plan does not tell.

    Raises:
        ValueError: The dataset is empty and has no schema.
    """
    schema = dataset.schema()
    if schema is None:
        raise ValueError(f"The dataset {dataset!r} has no rows and no schema.")
    base = schema.base_schema
    if isinstance(base, pa.Schema):
        return base
    # Blocks that are pandas frames have no Arrow types until they are converted.
    first = next(iter(dataset.limit(1).iter_batches(batch_format="pyarrow", batch_size=1)))
    return first.schema
