"""The whole life of a model on an S3 server, with two workers and tasks: nothing of it needs a shared file system."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.models import NUM_FEATURES, X, Y, endless_input_fn, linear_model_fn
from support.servers import S3Server, s3_server

from ray_estimator import CheckpointDamagedError
from ray_estimator._runtime.data.fingerprint import fingerprint
from ray_estimator._storage.storage import Storage
from ray_estimator.export import ServingInputReceiver
from ray_estimator.inputs import DatasetInput

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def serving_input_receiver_fn() -> ServingInputReceiver:
    x = v1.placeholder(tf.float32, [None, NUM_FEATURES])
    return ServingInputReceiver({"x": x}, {"x": x})


@pytest.mark.timeout(300)
def test_train_evaluate_predict_export_and_recover_on_s3(
    on_ray: Callable[..., Any],
    in_process: Callable[..., Any],
    cluster: Any,
    s3: S3Server,
    tmp_path: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model_dir = f"{s3.new_bucket()}/model"
    storage = Storage(s3.options)
    estimator = on_ray(
        linear_model_fn, params={}, model_dir=model_dir, storage_options=s3.options, save_checkpoints_steps=5
    )
    estimator.train(endless_input_fn, steps=10, saving_listeners=[v1.train.CheckpointSaverListener])
    assert estimator.latest_checkpoint() == f"{model_dir}/model.ckpt-10"
    assert storage.glob(model_dir, "events.out.tfevents.*")
    assert not [name for name in storage.list_dir(model_dir) if name.startswith((".publishing", ".reading"))]

    rows = cluster.data.from_items([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)])
    one_pass = DatasetInput(rows, batch_size=8, feature_columns=["x"], label_columns="y", num_epochs=1)
    assert estimator.evaluate(one_pass)["global_step"] == 10
    before = np.stack([row["y"] for row in estimator.predict(one_pass)])

    export_dir = estimator.export_saved_model(f"{model_dir}/export", serving_input_receiver_fn)
    storage.get_dir(export_dir, str(tmp_path / "export"))
    serve = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"]
    np.testing.assert_allclose(serve(x=tf.constant(X))["y"], before, rtol=1e-5)

    # A bit flips in a newer one; no name and no size tells it.
    local = in_process(
        linear_model_fn, params={}, model_dir=model_dir, storage_options=s3.options, save_checkpoints_steps=5
    )
    local.train(endless_input_fn, steps=2)
    data = f"{model_dir}/model.ckpt-12.data-00000-of-00001"
    content = bytearray(storage.read_bytes(data))
    content[-1] ^= 1
    storage.write_bytes(data, bytes(content))
    with pytest.raises(CheckpointDamagedError, match=r"model\.ckpt-12"):
        estimator.evaluate(one_pass, checkpoint_path=f"{model_dir}/model.ckpt-12")
    assert estimator.evaluate(one_pass)["global_step"] == 10
    assert len(list(estimator.predict(one_pass))) == len(X)
    local.train(endless_input_fn, max_steps=14)
    assert estimator.evaluate(one_pass)["global_step"] == 14
    assert s3.options["secret"] not in caplog.text


def test_a_file_of_a_dataset_that_was_replaced_by_one_of_its_size_is_another_one(cluster: Any, s3: S3Server) -> None:
    files = s3fs.S3FileSystem(**s3.options, skip_instance_cache=True)
    path = f"{s3.new_bucket().removeprefix('s3://')}/rows.parquet"

    def written(rows: list[int]) -> dict[str, str]:
        content = pa.BufferOutputStream()
        pq.write_table(pa.table({"x": rows}), content)
        files.pipe_file(path, content.getvalue().to_pybytes())
        dataset = cluster.data.read_parquet(path, filesystem=files)
        return fingerprint(dataset, pa.schema({"x": pa.int64()}), ("x",)) | {"size": str(files.size(path))}

    first, other = written([1, 2, 3]), written([1, 2, 4])
    assert first["size"] == other["size"]
    assert first["files"].startswith("1 files, ")
    assert other["files"] != first["files"]
