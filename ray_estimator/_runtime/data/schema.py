"""The Arrow schema of a Ray Dataset, looked up on the driver."""

from __future__ import annotations

import os

import pyarrow as pa
import ray
import ray.util.client
from ray.data import Dataset


def ray_is_ready() -> None:
    """Connect to Ray, or start it, unless this process is connected.

    Raises:
        RuntimeError: The connection is a Ray Client, which does not support Ray Data.
    """
    is_client = ray.util.client.ray.is_connected()
    if not is_client and not ray.is_initialized():
        is_client = os.environ.get("RAY_ADDRESS", "").startswith("ray://")
        if not is_client:
            ray.init()
    if is_client:
        raise RuntimeError(
            "Ray Client (ray://) does not support Ray Data and Ray Train. Run the driver on the cluster with "
            "`ray job submit --working-dir . -- python script.py` or in a notebook there, or run everything in this "
            "process with RunConfig(scaling_config=ray.train.ScalingConfig(num_workers=0))."
        )


def arrow_schema(dataset: Dataset) -> pa.Schema:
    """Return the schema of `dataset`. Reads its first block if the plan has no schema.

    Raises:
        ValueError: The dataset is empty and has no schema.
    """
    schema = dataset.schema()
    if schema is None:
        raise ValueError(f"The dataset must have rows or a schema, got {dataset!r}.")
    base = schema.base_schema
    if isinstance(base, pa.Schema):
        return base
    # pandas blocks have no Arrow types until they are converted.
    first = next(iter(dataset.limit(1).iter_batches(batch_format="pyarrow", batch_size=1)))
    return first.schema
