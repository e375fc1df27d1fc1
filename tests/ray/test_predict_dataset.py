"""predict_dataset: a lazy Dataset of predictions, in order, whose writing can be resumed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killed_writer_program
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from support.probes import note, notes

from ray_estimator import EstimatorNotTrainedError, EstimatorSpec, ModeKeys, dataset_input_fn

v1 = tf.compat.v1
pytestmark = pytest.mark.ray

NUM_ROWS = 40_010
BATCH = 100
IDS = np.arange(NUM_ROWS)
X = np.random.default_rng(3).normal(size=NUM_ROWS).astype(np.float32)


def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    if mode == ModeKeys.PREDICT and params.get("folder"):
        note(params["folder"], "built", 1)
    scale = v1.get_variable("scale", [], initializer=v1.constant_initializer(2.0))
    y = features["x"] * scale
    if mode == ModeKeys.PREDICT and params.get("single"):
        return EstimatorSpec(mode, predictions=y)
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"y": y, "pair": tf.stack([y, -y], axis=1)})
    step = v1.assign_add(v1.train.get_global_step(), 1)
    return EstimatorSpec(mode, loss=tf.reduce_mean(y), train_op=step)


@pytest.fixture
def trained(on_ray: Callable[..., Any], in_process: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def make(**params: Any) -> Any:
        local = in_process(model_fn, params=params, model_dir=tmp_path / "model")
        local.train(lambda: tf.data.Dataset.from_tensors({"x": X[:10]}))
        return on_ray(model_fn, 1, params=params)

    return make


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, rows in enumerate(np.array_split(IDS, 3)):
        names = pa.array([f"row {row}" for row in rows])
        pq.write_table(pa.table({"id": rows, "x": X[rows], "name": names}), folder / f"{number}.parquet")
    return str(folder)


def test_the_dataset_is_lazy_in_order_and_keeps_columns(
    cluster: Any, trained: Callable[..., Any], parquet: str, tmp_path: Path
) -> None:
    estimator = trained(folder=str(tmp_path))
    dataset = cluster.data.read_parquet(parquet)
    input_fn = dataset_input_fn(dataset, batch_size=BATCH, feature_columns=["x"])
    predicted = estimator.predict_dataset(input_fn, keep_columns=["id", "name"])
    assert not notes(tmp_path, "built")

    predicted.write_parquet(str(tmp_path / "out"))

    batches = list(predicted.iter_batches(batch_size=None, batch_format="numpy"))
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert list(columns) == ["id", "name", "y", "pair"]
    np.testing.assert_array_equal(columns["id"], IDS)
    np.testing.assert_array_equal(columns["y"], X * 2)
    np.testing.assert_array_equal(columns["pair"], np.stack([X * 2, X * -2], axis=1))
    assert columns["name"][-1] == f"row {NUM_ROWS - 1}"
    assert sorted(pq.read_table(tmp_path / "out", columns=["id"])["id"].to_pylist()) == list(range(NUM_ROWS))


def test_a_prediction_that_is_not_a_dict_is_a_column_and_keys_select(cluster: Any, trained: Callable[..., Any]) -> None:
    dataset = cluster.data.from_arrow(pa.table({"x": X[:250]}))
    input_fn = dataset_input_fn(dataset, batch_size=BATCH)
    single = trained(single=True).predict_dataset(input_fn).take_all()
    assert [row["predictions"] for row in single] == (X[:250] * 2).tolist()
    assert trained().predict_dataset(input_fn, predict_keys="y").columns() == ["y"]


def test_a_large_block_is_split_for_several_tasks(cluster: Any, trained: Callable[..., Any]) -> None:
    num_rows = 300_000
    x = np.arange(num_rows, dtype=np.float32)
    dataset = cluster.data.from_arrow(pa.table({"x": x}))
    predicted = trained(single=True).predict_dataset(dataset_input_fn(dataset, batch_size=BATCH)).materialize()
    most = -(-8 * 16_384 // BATCH) * BATCH
    blocks = [cluster.get(ref) for ref in predicted.to_arrow_refs()]
    assert [block.num_rows for block in blocks] == [most, most, num_rows - 2 * most]
    np.testing.assert_array_equal(pa.concat_tables(blocks)["predictions"].to_numpy(), x * 2)


def test_invalid_arguments_are_refused_immediately(
    cluster: Any, trained: Callable[..., Any], on_ray: Callable[..., Any], tmp_path: Path
) -> None:
    input_fn = dataset_input_fn(cluster.data.from_arrow(pa.table({"x": X[:10]})), batch_size=BATCH)
    estimator = trained()
    with pytest.raises(ValueError, match=r"keep_columns must be columns of the dataset, got \['ids'\]. It has \['x'\]"):
        estimator.predict_dataset(input_fn, keep_columns=["x", "ids"])
    with pytest.raises(TypeError, match="dataset_input_fn"):
        estimator.predict_dataset(lambda: None)
    with pytest.raises(EstimatorNotTrainedError):
        on_ray(model_fn, params={}, model_dir=tmp_path / "none").predict_dataset(input_fn)


def test_a_second_write_adds_only_missing_rows(
    cluster: Any, trained: Callable[..., Any], parquet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.data.checkpoint import CheckpointConfig

    context = cluster.data.DataContext.get_current().copy()
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=str(tmp_path / "marks"), delete_checkpoint_on_success=False
    )
    estimator, out = trained(), str(tmp_path / "out")

    def write(paths: Any) -> int:
        with cluster.data.DataContext.current(context):
            dataset = cluster.data.read_parquet(paths)
            input_fn = dataset_input_fn(dataset, batch_size=BATCH, feature_columns=["x"])
            estimator.predict_dataset(input_fn, keep_columns=["id"]).write_parquet(out)
        return int(pq.read_table(out, columns=["id"]).num_rows)

    assert write(f"{parquet}/0.parquet") == len(np.array_split(IDS, 3)[0])  # the part that the first job completed
    assert write(parquet) == NUM_ROWS
    rows = pq.read_table(out, columns=["id", "y"]).to_pandas().sort_values("id")
    np.testing.assert_array_equal(rows["id"], IDS)
    np.testing.assert_array_equal(rows["y"], X * 2)


def test_after_a_driver_was_killed_while_writing_all_rows_are_written_once(
    cluster: Any, in_process: Callable[..., Any], tmp_path: Path
) -> None:
    ids, folder = np.arange(300_000), str(tmp_path)  # enough rows for three tasks
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": ids}), tmp_path / "in" / "0.parquet")
    local = in_process(killed_writer_program.model_fn, params={"folder": folder})
    local.train(lambda: tf.data.Dataset.from_tensors({"id": ids[:5]}))

    program = [sys.executable, killed_writer_program.__file__, cluster.get_runtime_context().gcs_address, folder]
    driver = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not any(path.suffix == ".parquet" for path in tmp_path.glob("marks/**/*")):
            assert driver.poll() is None, driver.communicate()[1][-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.communicate()
    (tmp_path / "gate").touch()
    killed_writer_program.write_predictions(folder, "resumed")

    written = pq.read_table(tmp_path / "out", columns=["id", "y"]).to_pandas().sort_values("id")
    np.testing.assert_array_equal(written["id"], ids)
    np.testing.assert_array_equal(written["y"], ids * 2)
    assert 0 < sum(sum(each) for each in notes(tmp_path, "resumed").values()) < len(ids)
