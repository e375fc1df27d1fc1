"""Restoring a value whose shape differs from the variable's fails in every method."""

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
from support.models import one_pass_input_fn

from ray_estimator import EstimatorSpec, RunConfig
from ray_estimator._checkpoints.store import CheckpointStore
from ray_estimator._data.columns import column_specs
from ray_estimator._engine import entrypoints
from ray_estimator._jobs.jobs import EvaluateJob, PredictJob, RowSpec
from ray_estimator._jobs.serialization import InPlace
from ray_estimator._storage.storage import Storage

MakeEstimator = Callable[..., Any]

TABLE = pa.table({"x": np.arange(8, dtype=np.float32), "y": np.arange(8, dtype=np.float32)})


def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """A model with one variable of `params["units"]` units, which its output does not depend on."""
    weights = v1.get_variable("weights", [params["units"]], initializer=v1.ones_initializer())
    x = features["x"] if isinstance(features, dict) else features
    prediction = x * tf.reduce_mean(weights)
    train_op = v1.assign_add(v1.train.get_global_step(), 1)
    return EstimatorSpec(mode, predictions=prediction, loss=tf.reduce_mean(prediction), train_op=train_op)


def rows() -> Iterator[pa.Table]:
    yield TABLE


def jobs(model_dir: str, units: int) -> tuple[EvaluateJob, PredictJob]:
    """Jobs over the rows of a Ray Dataset, as tasks receive them."""
    schema = TABLE.schema
    parts = {"model_fn": model_fn, "params": {"units": units}}
    spec = RowSpec(column_specs(schema, ["x"]), column_specs(schema, ["y"]), single_label=True, batch_size=4)
    config = RunConfig(scaling_config=ScalingConfig(num_workers=0))
    checkpoint = CheckpointStore(model_dir, Storage()).latest()
    common: Any = (InPlace(parts), config, model_dir, spec)
    return EvaluateJob(*common, checkpoint=checkpoint), PredictJob(*common, checkpoint=checkpoint)


def evaluated(estimator: Any, units: int) -> Any:
    return estimator.evaluate(one_pass_input_fn)


def predicted(estimator: Any, units: int) -> Any:
    return next(estimator.predict(one_pass_input_fn))


def range_evaluated(estimator: Any, units: int) -> Any:
    return entrypoints.evaluate_range(jobs(estimator.model_dir, units)[0], rows)


def range_predicted(estimator: Any, units: int) -> Any:
    return entrypoints.predict_range(jobs(estimator.model_dir, units)[1], rows)


@pytest.mark.parametrize("run", [evaluated, predicted, range_evaluated, range_predicted])
def test_a_changed_shape_is_an_error_that_says_so(in_process: MakeEstimator, tmp_path: Path, run: Any) -> None:
    in_process(model_fn, params={"units": 1}).train(one_pass_input_fn, steps=1)

    run(in_process(model_fn, params={"units": 1}), 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a mismatch between"):
        run(in_process(model_fn, params={"units": 2}), 2)


@pytest.mark.parametrize("run", [evaluated, predicted])
def test_a_saver_of_the_scaffold_is_guarded_too(in_process: MakeEstimator, run: Any) -> None:
    def with_saver(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        spec = model_fn(features, labels, mode, params)
        return spec._replace(scaffold=v1.train.Scaffold(saver=v1.train.Saver(defer_build=True)))

    in_process(with_saver, params={"units": 1}).train(one_pass_input_fn, steps=1)

    run(in_process(with_saver, params={"units": 1}), 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a mismatch between"):
        run(in_process(with_saver, params={"units": 2}), 2)


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_variables_that_hooks_add_when_they_begin_are_restored(in_process: MakeEstimator, verb: str) -> None:
    class Counts(v1.train.SessionRunHook):
        """Counts training steps in a variable of its own."""

        value: Any = None

        def begin(self) -> None:
            self._count = v1.get_variable("count", [], initializer=v1.zeros_initializer())
            self._add = v1.assign_add(self._count, 1.0)

        def after_create_session(self, session: Any, coord: Any) -> None:
            self.value = session.run(self._count)

        def before_run(self, run_context: Any) -> Any:
            return v1.train.SessionRunArgs(self._add)

    estimator = in_process(model_fn, params={"units": 1})
    estimator.train(one_pass_input_fn, steps=3, hooks=[Counts()])

    hook = Counts()
    result = getattr(estimator, verb)(one_pass_input_fn, hooks=[hook])
    if verb == "predict":
        next(result)
        result.close()
    assert hook.value == 3.0
