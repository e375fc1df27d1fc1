"""Evaluate and predict over Ray tasks: the numbers of one pass, the rows in their order."""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from support.probes import note, notes

from ray_estimator import EstimatorSpec, ModeKeys, dataset_input_fn, export
from ray_estimator._runtime.data.rows import BlockRef, RangeOfRows

v1 = tf.compat.v1
pytestmark = pytest.mark.ray

NUM_ROWS = 40_010  # three ranges, the last batch ragged
BATCH = 100


def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """A scale that is learnt, metrics that add up, and on request one that does not."""
    if params.get("folder"):
        note(params["folder"], f"built-{mode}", 1)
    scale = v1.get_variable("scale", [], initializer=v1.ones_initializer())
    prediction = features["x"] * scale
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"y": prediction, "id": features["id"]})
    loss = tf.reduce_mean(tf.square(prediction - labels))
    if mode == ModeKeys.TRAIN:
        step = v1.train.get_global_step()
        return EstimatorSpec(mode, loss=loss, train_op=v1.train.GradientDescentOptimizer(0.1).minimize(loss, step))
    metrics = {
        "mae": v1.metrics.mean_absolute_error(labels, prediction),
        "auc": v1.metrics.auc(labels > 0, tf.sigmoid(prediction)),
    }
    if params.get("peak"):
        peak = v1.get_local_variable("peak", [], initializer=v1.zeros_initializer())
        metrics["peak"] = (peak.read_value(), v1.assign(peak, tf.maximum(peak, tf.reduce_max(prediction))))
    return EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)


def table() -> pa.Table:
    rng = np.random.default_rng(3)
    x = rng.normal(size=NUM_ROWS).astype(np.float32)
    noise = rng.normal(size=NUM_ROWS).astype(np.float32)
    return pa.table({"id": np.arange(NUM_ROWS), "x": x, "y": 2 * x + noise})


@pytest.fixture(scope="module")
def dataset(cluster: Any) -> Any:
    return cluster.data.from_arrow(table()).repartition(7).materialize()


@pytest.fixture
def trained(on_ray: Callable[..., Any], in_process: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Gives an Estimator on Ray over a checkpoint that was trained in process."""
    rows = table()
    x, y = (rows.column(name).to_numpy()[:1000] for name in ("x", "y"))

    def make(**params: Any) -> Any:
        local = in_process(model_fn, params=params, model_dir=tmp_path / "model")
        local.train(lambda: tf.data.Dataset.from_tensor_slices(({"x": x}, y)).batch(BATCH))
        return on_ray(model_fn, 1, params=params)

    return make


def test_merged_ranges_give_the_numbers_of_one_pass(
    trained: Callable[..., Any], in_process: Callable[..., Any], dataset: Any, tmp_path: Path
) -> None:
    estimator = trained()
    input_fn = dataset_input_fn(dataset, batch_size=BATCH, label_columns="y")
    merged = estimator.evaluate(input_fn, name="merged")
    single = in_process(model_fn, params={}, model_dir=tmp_path / "model").evaluate(input_fn)
    assert merged.keys() == single.keys()
    for name in single:
        np.testing.assert_allclose(merged[name], single[name], rtol=1e-6, err_msg=name)
    assert list((tmp_path / "model" / "eval_merged").glob("events*"))


def test_steps_are_the_first_batches(trained: Callable[..., Any], in_process: Callable[..., Any], dataset: Any) -> None:
    estimator = trained()
    input_fn = dataset_input_fn(dataset, batch_size=BATCH, label_columns="y")
    local = in_process(model_fn, params={}, model_dir=estimator.model_dir)
    assert estimator.evaluate(input_fn, steps=3)["mae"] == pytest.approx(local.evaluate(input_fn, steps=3)["mae"])
    assert estimator.evaluate(input_fn, steps=3)["mae"] != pytest.approx(local.evaluate(input_fn)["mae"])


def test_a_metric_that_cannot_be_merged_is_evaluated_in_one_task_and_named(
    trained: Callable[..., Any], dataset: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = trained(peak=True).evaluate(dataset_input_fn(dataset, batch_size=BATCH, label_columns="y"))
    assert "Evaluating in one task" in caplog.text
    assert "peak" in caplog.text
    assert result["peak"] > 1.0


def test_rows_come_in_input_order_and_stay_warm(trained: Callable[..., Any], dataset: Any, tmp_path: Path) -> None:
    estimator = trained(folder=str(tmp_path))
    input_fn = dataset_input_fn(dataset, batch_size=BATCH, label_columns="y")
    first = [row["id"] for row in estimator.predict(input_fn)]
    assert first == list(range(NUM_ROWS))
    built = len(notes(tmp_path, "built-infer")[0])
    batches = list(estimator.predict(input_fn, yield_single_examples=False))
    assert [len(batch["id"]) for batch in batches] == [BATCH] * 400 + [10]
    assert len(notes(tmp_path, "built-infer")[0]) <= max(built, 4)


def held_up_block(batch: dict[str, Any], last: int, given: str) -> dict[str, Any]:
    """The last block comes when there is a first prediction."""
    deadline = time.monotonic() + 60
    while last in batch["id"] and not Path(given).exists():
        if time.monotonic() > deadline:
            raise TimeoutError("No prediction was given before the last block.")
        time.sleep(0.05)
    return {**batch, "x": batch["id"].astype(np.float32)}


def test_the_first_row_of_a_cold_model_comes_before_the_last_of_two_blocks(
    cluster: Any, trained: Callable[..., Any], tmp_path: Path
) -> None:
    given, num_rows = tmp_path / "given", 2 * 16_400
    ids = cluster.data.range(num_rows, override_num_blocks=2)
    late = functools.partial(held_up_block, last=num_rows - 1, given=str(given))
    rows = trained().predict(dataset_input_fn(ids.map_batches(late, batch_size=None), batch_size=BATCH))
    assert next(rows)["id"] == 0
    given.touch()
    assert [row["id"] for row in rows] == list(range(1, num_rows))


@pytest.mark.soak
def test_more_than_the_object_store_holds_goes_through_two_gpus_at_flat_memory(tmp_path: Path) -> None:
    program = Path(__file__).with_name("small_store_program.py")
    ended = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-4000:]
    seen = json.loads(ended.stdout)

    assert seen["evaluated"] == seen["predicted"] == seen["rows"]
    early, most = seen["driver_mib"]
    assert most - early < 30  # of 192 MiB
    assert seen["emptied"]
    assert {tuple(ids) for ids in seen["gpus"]} == {(0,), (1,)}


def test_two_generators_interleave_and_one_is_left_early(trained: Callable[..., Any], dataset: Any) -> None:
    estimator = trained()
    input_fn = dataset_input_fn(dataset, batch_size=BATCH, label_columns="y")
    one, other = estimator.predict(input_fn), estimator.predict(input_fn, predict_keys=["id"])
    for number in range(20_000):
        assert next(one)["id"] == number
        assert next(other) == {"id": number}
    one.close()
    assert next(other) == {"id": 20_000}
    other.close()


def test_callable_inputs_run_as_one_task(trained: Callable[..., Any]) -> None:
    estimator = trained()
    x = np.arange(10, dtype=np.float32)

    def input_fn() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(({"x": x, "id": np.arange(10)}, 2 * x)).batch(4)

    assert [row["id"] for row in estimator.predict(input_fn)] == list(range(10))
    assert estimator.evaluate(input_fn)["global_step"] == 10


def test_predict_tolerates_a_dataset_without_labels(trained: Callable[..., Any], dataset: Any) -> None:
    estimator = trained()
    input_fn = dataset_input_fn(dataset.drop_columns(["y"]).limit(250), batch_size=BATCH, label_columns="y")
    assert [row["id"] for row in estimator.predict(input_fn)] == list(range(250))


def test_an_export_runs_as_a_task_and_loads(
    trained: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = trained()
    (tmp_path / "notes.txt").write_text("below the driver's directory")
    monkeypatch.chdir(tmp_path)
    features = {"x": tf.TensorSpec([None], tf.float32), "id": tf.TensorSpec([None], tf.int64)}
    receiver_fn = export.build_raw_serving_input_receiver_fn(features)
    path = estimator.export_savedmodel("export", receiver_fn, assets_extra={"notes.txt": "notes.txt"})
    assert (Path(path) / "assets.extra" / "notes.txt").read_text() == "below the driver's directory"
    served = tf.saved_model.load(path).signatures["serving_default"]
    answer = served(x=tf.constant([1.0, 2.0]), id=tf.constant([7, 8], tf.int64))
    scale = estimator.get_variable_value("scale")
    np.testing.assert_allclose(answer["y"], [scale, 2 * scale], rtol=1e-6)


def test_a_column_that_does_not_exist_is_an_error_before_any_work(trained: Callable[..., Any], dataset: Any) -> None:
    estimator = trained()
    with pytest.raises(ValueError, match=r"nothing.*id.*x.*y"):
        estimator.evaluate(dataset_input_fn(dataset, batch_size=BATCH, label_columns="nothing"))


def test_a_range_hands_on_whole_batches_across_its_blocks(cluster: Any) -> None:
    blocks = [pa.table({"id": range(start, start + 7), "unused": range(7)}) for start in (0, 7, 14)]
    pieces = tuple(BlockRef(0, cluster.put(block), 0, 7) for block in blocks)
    tables = list(RangeOfRows(pieces, ("id",), batch_size=5).tables())
    assert [table.num_rows % 5 for table in tables[:-1]] == [0] * (len(tables) - 1)
    assert [row for table in tables for row in table.column("id").to_pylist()] == list(range(21))
    assert tables[0].column_names == ["id"]
