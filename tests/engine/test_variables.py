"""Variables of a checkpoint by name, and the paths of checkpoints and event files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.models import X, Y, endless_input_fn, linear_model_fn

from ray_estimator import EstimatorNotTrainedError, EstimatorSpec

MakeEstimator = Callable[..., Any]


def momentum_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    """A linear regression whose optimizer has slot variables."""
    kernel = v1.get_variable("dense/kernel", [4, 1], initializer=v1.ones_initializer())
    loss = tf.reduce_mean(tf.square(tf.matmul(features, kernel) - labels))
    optimizer = v1.train.MomentumOptimizer(0.01, 0.9)
    return EstimatorSpec(mode, loss=loss, train_op=optimizer.minimize(loss, v1.train.get_global_step()))


def test_a8_names_are_those_of_all_variables_slots_and_global_step_included(in_process: MakeEstimator) -> None:
    estimator = in_process(momentum_model_fn).train(endless_input_fn, steps=1)

    assert sorted(estimator.get_variable_names()) == ["dense/kernel", "dense/kernel/Momentum", "global_step"]


def test_a8_values_are_arrays_of_the_newest_checkpoint(in_process: MakeEstimator) -> None:
    estimator = in_process(momentum_model_fn)
    estimator.train(endless_input_fn, steps=1)
    before = estimator.get_variable_value("dense/kernel")
    estimator.train(endless_input_fn, steps=2)

    after = estimator.get_variable_value("dense/kernel")

    assert isinstance(after, np.ndarray)
    assert (after.shape, after.dtype) == ((4, 1), np.float32)
    assert not np.array_equal(after, before)
    assert estimator.get_variable_value("global_step") == 3
    np.testing.assert_array_equal(after, tf.train.load_variable(estimator.model_dir, "dense/kernel"))


def test_a8_the_first_step_is_the_one_that_the_gradient_says(in_process: MakeEstimator) -> None:
    estimator = in_process(momentum_model_fn).train(endless_input_fn, steps=1)

    x, y, ones = X[:32], Y[:32], np.ones([4, 1], np.float32)
    gradient = 2 * x.T @ (x @ ones - y) / 32
    np.testing.assert_allclose(estimator.get_variable_value("dense/kernel/Momentum"), gradient, rtol=1e-5)
    np.testing.assert_allclose(estimator.get_variable_value("dense/kernel"), ones - 0.01 * gradient, rtol=1e-5)


def test_a8_without_a_checkpoint_there_are_no_variables(in_process: MakeEstimator) -> None:
    estimator = in_process(momentum_model_fn)
    message = f"Could not find trained model in model_dir: {estimator.model_dir}."

    for ask in (estimator.get_variable_names, lambda: estimator.get_variable_value("dense/kernel")):
        with pytest.raises(EstimatorNotTrainedError, match=message) as caught:
            ask()
        assert isinstance(caught.value, ValueError)


def test_a8_an_unknown_variable_is_named_beside_the_known_ones(in_process: MakeEstimator) -> None:
    estimator = in_process(momentum_model_fn).train(endless_input_fn, steps=1)

    with pytest.raises(ValueError, match=r"no variable 'dense/bias'.*dense/kernel, dense/kernel/Mom.*step"):
        estimator.get_variable_value("dense/bias")


def test_a8_the_latest_checkpoint_is_a_path_or_none(in_process: MakeEstimator) -> None:
    estimator = in_process(linear_model_fn, params={})
    assert estimator.latest_checkpoint() is None

    estimator.train(endless_input_fn, steps=4)

    assert estimator.latest_checkpoint() == f"{estimator.model_dir}/model.ckpt-4"
    assert tf.train.latest_checkpoint(estimator.model_dir) == estimator.latest_checkpoint()


def test_a8_a_checkpoint_that_is_not_whole_is_passed_over(in_process: MakeEstimator) -> None:
    estimator = in_process(linear_model_fn, params={})
    estimator.train(endless_input_fn, steps=2).train(endless_input_fn, steps=2)
    (data,) = Path(estimator.model_dir).glob("model.ckpt-4.data-*")
    data.unlink()

    assert estimator.latest_checkpoint() == f"{estimator.model_dir}/model.ckpt-2"
    assert estimator.get_variable_value("global_step") == 2


def test_a8_files_that_were_never_published_are_no_checkpoint(in_process: MakeEstimator) -> None:
    estimator = in_process(linear_model_fn, params={}).train(endless_input_fn, steps=2)
    for path in Path(estimator.model_dir).glob("model.ckpt-2.*"):
        (path.parent / path.name.replace("-2.", "-9.")).write_bytes(path.read_bytes())

    assert estimator.latest_checkpoint() == f"{estimator.model_dir}/model.ckpt-2"


@pytest.mark.parametrize(("name", "folder"), [(None, "eval"), ("", "eval"), ("test", "eval_test")])
def test_a8_eval_dir_is_named_for_the_evaluation(in_process: MakeEstimator, name: str | None, folder: str) -> None:
    estimator = in_process(linear_model_fn, params={})

    assert estimator.eval_dir(name) == f"{estimator.model_dir}/{folder}"


def test_a8_variables_come_from_a_remote_model_dir(in_process: MakeEstimator) -> None:
    estimator = in_process(momentum_model_fn, model_dir="memory://a8-variables/model")
    estimator.train(endless_input_fn, steps=2)

    assert estimator.latest_checkpoint() == "memory://a8-variables/model/model.ckpt-2"
    assert "dense/kernel/Momentum" in estimator.get_variable_names()
    assert estimator.get_variable_value("global_step") == 2
