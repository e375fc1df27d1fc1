"""Which rows of a Ray Dataset training sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from support.probes import note, notes

from ray_estimator import EstimatorSpec, dataset_input_fn

v1 = tf.compat.v1
pytestmark = pytest.mark.ray


def noting_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """A linear model that notes the rows of each step."""

    def record(ids: np.ndarray) -> np.float32:
        note(params["folder"], "rows", ids.tolist())
        return np.float32(0)

    noted = tf.numpy_function(record, [features["id"]], tf.float32)
    weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
    loss = tf.reduce_mean(tf.square(weight - tf.cast(labels, tf.float32))) + tf.reshape(noted, [])
    step = v1.train.get_global_step()
    return EstimatorSpec(mode, loss=loss, train_op=v1.train.GradientDescentOptimizer(0.1).minimize(loss, step))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_row_once_an_epoch_and_the_last_batch_shared(
    cluster: Any, on_ray: Callable[..., Any], in_process: Callable[..., Any], tmp_path: Path, num_workers: int
) -> None:
    table = pa.table({"id": np.arange(50), "y": np.arange(50, dtype=np.float32)})
    dataset = cluster.data.from_arrow(table).repartition(4)
    make = partial(on_ray, num_workers=2) if num_workers == 2 else in_process
    estimator = make(noting_model_fn, params={"folder": str(tmp_path)})
    estimator.train(
        dataset_input_fn(dataset, batch_size=12 // num_workers, label_columns="y", num_epochs=2, shuffle=True, seed=5)
    )
    by_rank = notes(tmp_path, "rows")
    steps = zip(*(by_rank[rank] for rank in range(num_workers)), strict=True)
    batches = [[row for part in parts for row in part] for parts in steps]
    rows = [row for batch in batches for row in batch]
    assert sorted(rows[:50]) == list(range(50))
    assert sorted(rows[50:]) == list(range(50))
    assert rows[:50] != rows[50:]
    assert [len(batch) for batch in batches] == [12] * 8 + [4]
    assert estimator.latest_checkpoint().endswith("-9")
