"""The road from a Ray Dataset into training: deadlines, what is left behind, and data larger than memory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import tensorflow as tf

from ray_estimator import EstimatorSpec, InputTimeoutError, ModeKeys, dataset_input_fn
from ray_estimator._runtime.data import ranges, streaming
from ray_estimator._runtime.data.prefetch import Prefetcher
from ray_estimator._runtime.data.rows import BlockFeed, RowSource, blocks_from
from ray_estimator._runtime.data.streaming import bundles_in_order

v1 = tf.compat.v1
pytestmark = pytest.mark.ray

BATCH = 8
WAIT_SECS = 120.0


def model_fn(features: Any, mode: str) -> EstimatorSpec:
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"id": features["id"]})
    weight = v1.get_variable("weight", [])
    loss = tf.reduce_mean(tf.square(weight - tf.cast(features["id"], tf.float32)))
    train_op = v1.train.GradientDescentOptimizer(0.0).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def stall(batch: dict[str, Any]) -> dict[str, Any]:
    """Gives the first rows, and then never ends."""
    if batch["id"].min() > 0:
        threading.Event().wait()
    return batch


def wait_until(holds: Callable[[Any], bool], look: Callable[[], Any]) -> None:
    """Waits until what `look` sees is right."""
    deadline = time.monotonic() + WAIT_SECS
    while not holds(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)


def free_cpus() -> float | None:
    """CPUs that nobody uses."""
    return ray.available_resources().get("CPU")


@pytest.fixture
def stalled(cluster: Any) -> Iterator[Any]:
    """A Dataset whose second block never comes; whatever reads it must free what it takes."""
    wait_until(lambda cpus: cpus == 4, free_cpus)
    yield cluster.data.range(40, override_num_blocks=4).map_batches(stall, batch_size=10)
    wait_until(lambda cpus: cpus == 4, free_cpus)


def test_a_stalled_input_of_one_worker_is_an_error_that_names_the_operator(
    in_process: Callable[..., Any], stalled: Any
) -> None:
    estimator = in_process(model_fn, input_timeout_secs=3)
    with pytest.raises(InputTimeoutError, match=r"MapBatches\(stall\).*input_timeout_secs=3"):
        estimator.train(dataset_input_fn(stalled, batch_size=BATCH), steps=10)


def test_a_stalled_input_of_a_group_is_the_same_error_on_every_rank(cluster: Any, stalled: Any) -> None:
    source = RowSource(stalled, ("id",), BATCH, num_epochs=None, timeout_secs=3)
    feed = cluster.remote(num_cpus=0)(BlockFeed).remote(source, 2)
    try:
        for rank in range(2):
            blocks = blocks_from(feed, "attempt", rank, 3, first_epoch=0)
            assert next(blocks).num_rows == 10
            with pytest.raises(InputTimeoutError, match=r"MapBatches\(stall\)"):
                next(blocks)
    finally:
        cluster.kill(feed)


@pytest.fixture
def predicted(on_ray: Callable[..., Any], stalled: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Predicts the stalled Dataset, a batch in each task: one batch comes."""
    monkeypatch.setattr(ranges, "least_rows", lambda batch_size: batch_size)

    def predict(**config: Any) -> Any:
        rows = on_ray(model_fn, **config).predict(dataset_input_fn(stalled, batch_size=BATCH), allow_untrained=True)
        assert [row["id"] for row in itertools.islice(rows, BATCH)] == list(range(BATCH))
        return rows

    return predict


def test_a_stalled_input_of_a_prediction_is_an_error_behind_the_rows_that_came(predicted: Callable[..., Any]) -> None:
    rows = predicted(input_timeout_secs=3)
    with pytest.raises(InputTimeoutError, match=r"MapBatches\(stall\).*input_timeout_secs=3"):
        next(rows)


def test_leaving_a_prediction_that_waits_for_a_block_ends_its_threads(predicted: Callable[..., Any]) -> None:
    rows = predicted()
    assert [thread for thread in threading.enumerate() if isinstance(thread, Prefetcher)]
    rows.close()
    assert not [thread for thread in threading.enumerate() if isinstance(thread, Prefetcher)]


def test_leaving_a_prediction_early_frees_what_it_held(
    on_ray: Callable[..., Any], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from larger_than_store_program import store_stats

    monkeypatch.setattr(ranges, "least_rows", lambda batch_size: batch_size)
    wait_until(lambda cpus: cpus == 4, free_cpus)
    bytes_before = store_stats().object_store_bytes_used
    # Blocks of 4 MB, and a task for each block.
    wide = cluster.data.range(4000, override_num_blocks=8).map_batches(
        lambda batch: {**batch, "x": np.ones((len(batch["id"]), 1024), np.float64)}
    )
    rows = on_ray(model_fn).predict(dataset_input_fn(wide, batch_size=500), allow_untrained=True)
    assert next(rows)["id"] == 0
    assert store_stats().object_store_bytes_used > bytes_before + 4 * 10**6
    rows.close()
    wait_until(lambda stats: stats.object_store_bytes_used < bytes_before + 10**6, store_stats)
    wait_until(lambda cpus: cpus == 4, free_cpus)


def test_a_slow_consumer_is_not_taken_for_a_stalled_input(cluster: Any) -> None:
    dataset = cluster.data.range(40, override_num_blocks=4).map_batches(lambda batch: batch)
    dataset.context.execution_no_progress_timeout_s = 0.5
    bundles = bundles_in_order(dataset, timeout_secs=10)
    next(bundles)
    threading.Event().wait(1.5)  # a checkpoint that takes longer than Ray Data's own patience
    assert sum(bundle.num_rows() for bundle in bundles) == 30


def test_leaving_the_blocks_ends_the_execution_and_its_threads(cluster: Any) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    bundles = bundles_in_order(cluster.data.range(1000, override_num_blocks=100), timeout_secs=10)
    next(bundles)
    bundles.close()
    wait_until(before.issuperset, lambda: {thread.ident for thread in threading.enumerate()})
    wait_until(lambda cpus: cpus == 4, free_cpus)


def test_ten_short_train_calls_leave_no_more_behind_than_one(in_process: Callable[..., Any], cluster: Any) -> None:
    from larger_than_store_program import store_stats

    def left() -> list[str]:
        # A dummy stands for a thread of TensorFlow's that once ran Python.
        return [thread.name for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)]

    bytes_before = store_stats().object_store_bytes_used
    # 16 MB in each call, beside which Ray Data's own plans of what to read are small.
    wide = cluster.data.range(2000, override_num_blocks=8).map_batches(
        lambda batch: {**batch, "x": np.ones((len(batch["id"]), 1024), np.float64)}
    )
    estimator = in_process(model_fn, save_checkpoints_steps=1000)
    estimator.train(dataset_input_fn(wide, batch_size=BATCH), steps=3)
    after_one = left()
    for _ in range(9):
        estimator.train(dataset_input_fn(wide, batch_size=BATCH), steps=3)
    wait_until(lambda threads: len(threads) <= len(after_one), left)
    wait_until(lambda stats: stats.object_store_bytes_used < bytes_before + 4 * 2**20, store_stats)


@pytest.mark.soak
def test_a_dataset_of_four_object_stores_streams_through_training_at_flat_memory(tmp_path: Path) -> None:
    program = Path(__file__).with_name("larger_than_store_program.py")
    command = ["timeout", "-s", "KILL", "180", sys.executable, str(program), str(tmp_path / "model")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["rows"] == seen["expected_rows"]
    assert seen["dataset_bytes"] >= 4 * seen["store_bytes"]
    assert seen["spilled_bytes"] == 0
    assert seen["grown_bytes"] < seen["dataset_bytes"] / 2


def test_blocks_that_are_in_memory_need_no_execution(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_Execution", lambda *args: pytest.fail("Ray Data executes"))
    made = cluster.data.from_arrow([pa.table({"x": [1, 2]}), pa.table({"x": [3]})])
    for dataset in (made, made.materialize()):
        bundles = list(bundles_in_order(dataset, timeout_secs=5))
        tables = [cluster.get(entry.ref) for bundle in bundles for entry in bundle.blocks]
        assert [x for table in tables for x in table["x"].to_pylist()] == [1, 2, 3]
