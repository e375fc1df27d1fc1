"""The Arrow schema of a Ray Dataset, looked up on the driver."""

from __future__ import annotations

import os

import pyarrow as pa
import ray
import ray.util.client
from ray.data import Dataset


def ray_is_ready() -> None:
    """Connects to Ray, or starts it, if this process has not yet.

    Raises:
        RuntimeError: By way of Ray Client, from where Ray Data does not work.
    """
    is_client = ray.util.client.ray.is_connected()
    if not is_client and not ray.is_initialized():
        is_client = os.environ.get("RAY_ADDRESS", "").startswith("ray://")
        if not is_client:
            ray.init()
    if is_client:
        raise RuntimeError(
            "The driver is connected by Ray Client (ray://), where Ray Data and Ray Train do not work. Run it on the "
            "cluster: `ray job submit --working-dir . -- python script.py`, or in a notebook there; or run everything "
            "in this process: RunConfig(scaling_config=ray.train.ScalingConfig(num_workers=0))."
        )


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
