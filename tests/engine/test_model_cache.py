"""Models cached in a task's process: which jobs share a graph or its weights, and how many are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from ray.train import ScalingConfig

from ray_estimator import CheckpointNotFoundError, EstimatorSpec, RunConfig
from ray_estimator._checkpoints.store import Checkpoint, CheckpointStore
from ray_estimator._data.columns import column_specs
from ray_estimator._engine import evaluate, model_cache, predict
from ray_estimator._jobs.jobs import EvaluateJob, PredictJob, RowSpec
from ray_estimator._jobs.serialization import pack
from ray_estimator._storage.storage import Storage

TABLE = pa.table({"x": np.arange(4, dtype=np.float32)})


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    model_cache._models.clear()
    yield
    model_cache._models.clear()


def saved(model_dir: Path, weight: float, step: int) -> Checkpoint:
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.create_global_step()
        v1.get_variable("weight", [], initializer=v1.constant_initializer(weight))
        session.run(v1.global_variables_initializer())
        session.run(v1.assign(v1.train.get_global_step(), step))
        v1.train.Saver().save(session, str(model_dir / "model.ckpt"), global_step=step)
    return Checkpoint(str(model_dir / f"model.ckpt-{step}"), step)


def tables() -> Any:
    return iter([TABLE])


def a_job(
    kind: Any, model_fn: Callable[..., Any], model_dir: Path, checkpoint: Checkpoint | None, **params: Any
) -> Any:
    config = RunConfig(scaling_config=ScalingConfig(num_workers=0), model_dir=str(model_dir))
    rows = RowSpec(column_specs(TABLE.schema, ["x"]), {}, single_label=False, batch_size=2)
    fingerprint = checkpoint and CheckpointStore(str(model_dir), Storage()).fingerprint(checkpoint)
    code = pack({"model_fn": model_fn, "params": params})
    return kind(code, config, str(model_dir), rows, checkpoint=checkpoint, fingerprint=fingerprint)


def model_fn(features: Any, mode: str, params: Any) -> EstimatorSpec:
    with open(params["builds"], "a") as file:
        file.write("x")
    weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
    y = features["x"] * weight
    return EstimatorSpec(mode, loss=tf.reduce_sum(y), predictions={"y": y})


def test_a_new_checkpoint_reloads_weights_and_builds_nothing(tmp_path: Path) -> None:
    builds = tmp_path / "builds"
    losses, predictions = [], []
    for step, weight in enumerate([2.0, 3.0, 4.0], start=1):
        checkpoint = saved(tmp_path, weight, step)
        job = a_job(EvaluateJob, model_fn, tmp_path, checkpoint, builds=str(builds))
        result = evaluate.finish(job, evaluate.accumulate(job, tables))
        losses.append((float(result["loss"]), int(result["global_step"])))
        job = a_job(PredictJob, model_fn, tmp_path, checkpoint, builds=str(builds))
        batches = predict.predict_range(job, tables).batches
        predictions.append(np.concatenate([batch["y"] for batch in batches]).tolist())

    assert losses == [(6.0, 1), (9.0, 2), (12.0, 3)]
    assert predictions == [[0, 2, 4, 6], [0, 3, 6, 9], [0, 4, 8, 12]]
    assert builds.read_text() == "xx"  # once for each mode


def test_weights_whose_restore_failed_are_restored_again(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 2.0, 1), saved(tmp_path, 3.0, 2)
    jobs = [a_job(PredictJob, model_fn, tmp_path, each, builds=str(tmp_path / "builds")) for each in (first, second)]
    predict.predict_range(jobs[0], tables)
    for path in tmp_path.glob("model.ckpt-2.*"):
        path.rename(path.with_suffix(path.suffix + ".away"))
    with pytest.raises(CheckpointNotFoundError):
        predict.predict_range(jobs[1], tables)
    for path in tmp_path.glob("*.away"):
        path.rename(path.with_suffix(""))

    assert predict.predict_range(jobs[1], tables).batches[1]["y"].tolist() == [6, 9]
    assert predict.predict_range(jobs[0], tables).batches[1]["y"].tolist() == [4, 6]


def test_initial_weights_and_a_checkpoint_are_two_models(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, 2.0, 1)
    seen = []
    for each in (None, checkpoint, None):
        job = a_job(PredictJob, model_fn, tmp_path, each, builds=str(tmp_path / "builds"))
        seen.append(predict.predict_range(job, tables).batches[1]["y"].tolist())

    assert seen == [[0, 0], [4, 6], [0, 0]]


def test_a_bounded_number_of_models_is_kept_and_the_others_are_closed(tmp_path: Path) -> None:
    sessions = []
    for number in range(4):
        job = a_job(PredictJob, model_fn, tmp_path, None, builds=str(tmp_path / "builds"), number=number)
        predict.predict_range(job, tables)
        sessions.append(next(reversed(model_cache._models.values())).session.raw_session)

    assert len(model_cache._models) == 2
    for session in sessions[:2]:
        with pytest.raises(RuntimeError, match="closed"):
            session.run([])
    for session in sessions[2:]:
        session.run([])


def counting_model_fn(features: Any, mode: str) -> EstimatorSpec:
    count = v1.get_variable("count", [], initializer=v1.zeros_initializer())
    return EstimatorSpec(mode, predictions={"y": features["x"] + v1.assign_add(count, 1.0)})


def test_a_prediction_that_remembers_batches_must_run_as_one_task(tmp_path: Path) -> None:
    job = a_job(PredictJob, counting_model_fn, tmp_path, None)

    predicted = predict.predict_range(job, tables)

    assert not predicted.batches
    assert predicted.one_task_reason == "a prediction writes 'count', which the next batch may read"
    assert [batch["y"].tolist() for batch in predict.stream(job, tables)] == [[1, 2], [4, 5]]
