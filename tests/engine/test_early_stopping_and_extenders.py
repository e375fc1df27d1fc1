"""Early stopping, in-memory evaluation, additional metrics, and the other hooks of tf.estimator."""

from __future__ import annotations

import logging
import pickle
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from ray.train import ScalingConfig
from support import worlds
from support.models import endless_input_fn, linear_model_fn, one_pass_input_fn
from support.recording import EACH_SAVE_ARRIVES, RecordingHook, published_steps, scalars, with_spec

import ray_estimator
from ray_estimator import Estimator, EstimatorSpec, EvalSpec, ModeKeys, RunConfig, TrainSpec, add_metrics, hooks
from ray_estimator._storage.storage import Storage
from ray_estimator.experimental import (
    InMemoryEvaluatorHook,
    call_logit_fn,
    make_early_stopping_hook,
    make_stop_at_checkpoint_step_hook,
    read_eval_metrics,
    stop_if_higher_hook,
    stop_if_lower_hook,
    stop_if_no_decrease_hook,
    stop_if_no_increase_hook,
)

Make = Callable[..., Any]


def estimator_in(in_process: Make, **config: Any) -> Any:
    return in_process(linear_model_fn, params={}, **config)


def step_of(estimator: Any) -> int:
    return int(estimator.get_variable_value("global_step"))


# 1. Early stopping


def test_a13_1_the_predicate_is_asked_after_the_first_step_and_at_intervals(in_process: Make) -> None:
    estimator, asked = estimator_in(in_process), []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    hook = make_early_stopping_hook(estimator, should_stop, run_every_secs=None, run_every_steps=4)
    assert isinstance(hook, v1.train.SessionRunHook)
    estimator.train(endless_input_fn, max_steps=100, hooks=[hook])

    assert step_of(estimator) == 9
    assert published_steps(estimator.model_dir)[-1] == 9
    assert not [name for name in estimator.get_variable_names() if "STOP" in name]


def test_a13_1_the_predicate_is_asked_by_the_clock(in_process: Make) -> None:
    estimator, asked = estimator_in(in_process), []

    def never() -> bool:
        asked.append(1)
        return False

    estimator.train(endless_input_fn, max_steps=20, hooks=[make_early_stopping_hook(estimator, never)])
    assert len(asked) == 1
    often = make_early_stopping_hook(estimator, never, run_every_secs=0.0)
    estimator.train(endless_input_fn, max_steps=30, hooks=[often])
    assert len(asked) == 11


def test_a13_1_a_hook_serves_several_runs(in_process: Make) -> None:
    estimator = estimator_in(in_process)
    hook = make_early_stopping_hook(estimator, lambda: True, run_every_secs=None, run_every_steps=100)
    for step in (1, 2):
        estimator.train(endless_input_fn, steps=10, hooks=[hook])
        assert step_of(estimator) == step


def test_a13_1_the_arguments_are_checked(in_process: Make) -> None:
    estimator = estimator_in(in_process)
    with pytest.raises(TypeError, match="`estimator` must have type"):
        make_early_stopping_hook("estimator", lambda: True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`estimator` must have type"):
        stop_if_lower_hook("estimator", "loss", 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`should_stop_fn` must be callable"):
        make_early_stopping_hook(estimator, True)  # type: ignore[arg-type]
    for secs, steps in ((60, 1), (None, None)):
        with pytest.raises(ValueError, match="Only one of `run_every_secs` and `run_every_steps` must be set"):
            make_early_stopping_hook(estimator, lambda: True, secs, steps)


def test_a13_1_an_early_stop_ends_train_and_evaluate_with_a_last_evaluation(in_process: Make) -> None:
    estimator = estimator_in(in_process, save_checkpoints_steps=4)
    stop = stop_if_lower_hook(estimator, "loss", 2.0, run_every_secs=None, run_every_steps=1)

    metrics, _ = ray_estimator.train_and_evaluate(
        estimator,
        TrainSpec(endless_input_fn, max_steps=1000, hooks=[stop]),
        EvalSpec(one_pass_input_fn, throttle_secs=0),
    )

    evaluations = read_eval_metrics(estimator.eval_dir())
    (first_below, *_) = (step for step, values in evaluations.items() if values["loss"] < 2.0)
    # A save and its evaluation come before the user's hooks, which therefore see it in the same step.
    assert list(evaluations)[-1] == step_of(estimator) == first_below
    assert metrics is not None
    assert metrics["global_step"] == first_below < 1000


def write_evaluations(folder: str, results: Mapping[int, Mapping[str, float]]) -> None:
    """Write event files as evaluations do."""
    with tf.Graph().as_default():
        writer = v1.summary.FileWriter(folder, filename_suffix=f".{uuid.uuid4().hex}")
        for step, metrics in results.items():
            values = [v1.Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
            path = v1.Summary.Value(tag="checkpoint_path", tensor=tf.make_tensor_proto("somewhere"))
            writer.add_summary(v1.Summary(value=[*values, path]), step)
        writer.close()


def accuracies(*values: float) -> dict[int, dict[str, float]]:
    """Write evaluations of the steps 1000, 2000, ..."""
    return {1000 * number: {"accuracy": value, "loss": 1 - value} for number, value in enumerate(values, 1)}


def stops(estimator: Any, make: Callable[..., Any], *arguments: Any, **named: Any) -> bool:
    """Return whether the hook stops training after the first step."""
    hook = make(estimator, *arguments, run_every_secs=None, run_every_steps=1000, **named)
    # As it travels.
    hook = pickle.loads(pickle.dumps(hook))
    before = 0 if estimator.latest_checkpoint() is None else step_of(estimator)
    estimator.train(endless_input_fn, steps=2, hooks=[hook])
    return step_of(estimator) == before + 1


RISING = accuracies(0.5, 0.6, 0.7, 0.8)
PEAK = accuracies(0.5, 0.8, 0.7, 0.6, 0.9)


@pytest.mark.parametrize(
    ("make", "metric", "bound", "min_steps", "evaluations", "expected"),
    [
        (stop_if_higher_hook, "accuracy", 0.75, 0, RISING, True),
        (stop_if_higher_hook, "accuracy", 0.8, 0, accuracies(0.75), False),
        (stop_if_higher_hook, "accuracy", 0.85, 0, PEAK, True),
        (stop_if_higher_hook, "accuracy", 0.75, 5000, RISING, False),
        (stop_if_higher_hook, "accuracy", 0.75, 4000, RISING, True),
        (stop_if_lower_hook, "loss", 0.25, 0, RISING, True),
        (stop_if_lower_hook, "loss", 0.1, 0, RISING, False),
        (stop_if_lower_hook, "loss", 0.25, 4001, RISING, False),
        (stop_if_no_increase_hook, "accuracy", 1000, 0, RISING, False),
        (stop_if_no_increase_hook, "accuracy", 2000, 0, PEAK, True),
        (stop_if_no_increase_hook, "accuracy", 2001, 0, PEAK, False),
        (stop_if_no_increase_hook, "accuracy", 1000, 3000, PEAK, True),
        (stop_if_no_increase_hook, "accuracy", 1000, 5000, PEAK, False),
        (stop_if_no_decrease_hook, "loss", 2000, 0, PEAK, True),
        (stop_if_no_decrease_hook, "loss", 2001, 0, PEAK, False),
        (stop_if_no_decrease_hook, "accuracy", 3000, 0, RISING, True),
    ],
)
def test_a13_1_hooks_that_look_at_evaluations(
    in_process: Make,
    make: Callable[..., Any],
    metric: str,
    bound: float,
    min_steps: int,
    evaluations: Mapping[int, Mapping[str, float]],
    expected: bool,
) -> None:
    estimator = estimator_in(in_process)
    write_evaluations(estimator.eval_dir(), evaluations)
    assert stops(estimator, make, metric, bound, min_steps=min_steps) is expected


def test_a13_1_without_evaluations_training_goes_on(in_process: Make) -> None:
    estimator = estimator_in(in_process)
    assert not stops(estimator, stop_if_lower_hook, "loss", 1e9)
    assert not stops(estimator, stop_if_no_decrease_hook, "loss", 0)
    assert read_eval_metrics(estimator.eval_dir()) == {}


@pytest.mark.parametrize("store", ["local", "memory"])
def test_a13_1_another_directory_of_evaluations(in_process: Make, tmp_path: Path, store: str) -> None:
    estimator = estimator_in(in_process)
    write_evaluations(str(tmp_path / "elsewhere"), RISING)
    url = str(tmp_path / "elsewhere")
    if store == "memory":
        url = f"memory://{uuid.uuid4().hex}"
        Storage().put_dir(str(tmp_path / "elsewhere"), url)
    assert not stops(estimator, stop_if_higher_hook, "accuracy", 0.75)
    assert stops(estimator, stop_if_higher_hook, "accuracy", 0.75, eval_dir=url)
    Storage().remove_dir(url)


def test_a13_1_a_metric_that_no_evaluation_has_is_an_error(in_process: Make) -> None:
    estimator = estimator_in(in_process)
    write_evaluations(estimator.eval_dir(), RISING)
    with pytest.raises(ValueError, match=r"got 'acuracy'. They have \['accuracy', 'loss'\]"):
        stops(estimator, stop_if_higher_hook, "acuracy", 0.9)


def test_a13_1_evaluations_are_read_in_the_order_of_steps_from_all_files(in_process: Make) -> None:
    folder = estimator_in(in_process).eval_dir()
    write_evaluations(folder, {30: {"loss": 3.0}, 20: {"loss": 2.0}})
    write_evaluations(folder, {10: {"loss": 1.0}, 20: {"auc": 0.5}})
    (Path(folder) / "notes.txt").write_text("no events")
    found = read_eval_metrics(folder)
    assert list(found) == [10, 20, 30]
    assert found[20] == {"loss": 2.0, "auc": 0.5}


def test_a13_1_a_damaged_file_is_read_up_to_the_damage(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(estimator_in(in_process).eval_dir())
    write_evaluations(str(folder), RISING)
    (damaged,) = folder.iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-20])
    write_evaluations(str(folder), {5000: {"accuracy": 0.9}})
    assert list(read_eval_metrics(str(folder))) == [1000, 2000, 3000, 5000]
    assert f"Skipping the rest of the event file {damaged}" in caplog.text


# 2. Evaluation in memory, stop at a step


def test_a13_2_it_evaluates_at_the_start_at_intervals_and_at_the_end_without_checkpoints(in_process: Make) -> None:
    estimator = estimator_in(in_process, save_checkpoints_secs=None, save_summary_steps=1)
    calls: list[Any] = []
    hook = InMemoryEvaluatorHook(
        estimator, one_pass_input_fn, steps=3, hooks=[RecordingHook("eval", calls)], name="memory", every_n_iter=4
    )

    estimator.train(endless_input_fn, steps=10, hooks=[hook])

    found = read_eval_metrics(estimator.eval_dir("memory"))
    assert list(found) == [0, 4, 8, 10]
    assert calls.count(("eval", "after_run")) == 4 * 3
    assert estimator.latest_checkpoint() is None
    assert sorted(scalars(estimator.model_dir, "loss")) == list(range(1, 11))


@pytest.mark.parametrize(
    ("model_fn", "train_input_fn", "eval_input_fn"),
    [
        (linear_model_fn, endless_input_fn, one_pass_input_fn),
        (worlds.keras_model_fn, worlds.endless_input_fn, worlds.one_pass_input_fn),
    ],
)
def test_a13_2_it_finds_what_an_evaluation_of_the_checkpoint_finds(
    in_process: Make, model_fn: Any, train_input_fn: Any, eval_input_fn: Any
) -> None:
    estimator = in_process(model_fn, params={}, save_checkpoints_steps=5)
    hook = InMemoryEvaluatorHook(estimator, eval_input_fn, name="memory", every_n_iter=5)

    estimator.train(train_input_fn, steps=10, hooks=[hook], saving_listeners=EACH_SAVE_ARRIVES)

    found = read_eval_metrics(estimator.eval_dir("memory"))
    for step in (5, 10):
        path = f"{estimator.model_dir}/model.ckpt-{step}"
        expected = estimator.evaluate(eval_input_fn, checkpoint_path=path)
        assert found[step] == pytest.approx({name: expected[name] for name in found[step]}, rel=1e-6)
    assert found[5] != found[10]


def test_a13_2_its_input_is_checked(in_process: Make) -> None:
    with pytest.raises(TypeError, match="input_fn for mode 'eval' must be a callable"):
        InMemoryEvaluatorHook(estimator_in(in_process), "input")  # type: ignore[arg-type]


@pytest.mark.parametrize("every", [0, -1, None])
def test_a13_2_every_n_iter_must_be_positive(in_process: Make, every: Any) -> None:
    with pytest.raises(ValueError, match=f"invalid every_n_iter={every}"):
        InMemoryEvaluatorHook(estimator_in(in_process), one_pass_input_fn, every_n_iter=every)


def test_a13_2_several_workers_are_refused(tmp_path: Path) -> None:
    config = RunConfig(scaling_config=ScalingConfig(num_workers=2))
    with pytest.raises(ValueError, match=r"only single machine \(aka Local\) setting.*num_workers=2"):
        InMemoryEvaluatorHook(Estimator(linear_model_fn, tmp_path, config, {}), one_pass_input_fn)


@pytest.mark.parametrize(
    ("scaffold", "what"),
    [
        (lambda: v1.train.Scaffold(saver=v1.train.Saver()), "custom saver"),
        (lambda: v1.train.Scaffold(init_fn=lambda scaffold, session: None), "custom init_fn"),
    ],
)
def test_a13_2_what_a_scaffold_may_not_have(in_process: Make, scaffold: Any, what: str) -> None:
    estimator = in_process(with_spec(linear_model_fn, scaffold=scaffold), params={})
    hook = InMemoryEvaluatorHook(estimator, one_pass_input_fn)
    with pytest.raises(ValueError, match=f"does not support {what}"):
        estimator.train(endless_input_fn, steps=1, hooks=[hook])


def test_a13_2_saveables_that_are_no_variables_are_refused(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        spec = linear_model_fn(features, labels, mode, params)
        tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)
        return spec

    estimator = in_process(model_fn, params={}, save_checkpoints_secs=None)
    hook = InMemoryEvaluatorHook(estimator, one_pass_input_fn)
    with pytest.raises(ValueError, match="does not support saveables other than global variables"):
        estimator.train(endless_input_fn, steps=1, hooks=[hook])


def test_a13_2_a_stop_at_a_step(in_process: Make) -> None:
    estimator = estimator_in(in_process)
    hook = make_stop_at_checkpoint_step_hook(estimator, last_step=7, wait_after_file_check_secs=1)
    estimator.train(endless_input_fn, steps=100, hooks=[hook])
    assert published_steps(estimator.model_dir)[-1] == 7
    with pytest.raises(ValueError, match="last_step must be specified"):
        make_stop_at_checkpoint_step_hook(estimator, None)  # type: ignore[arg-type]


# 3. Further metrics, logit functions


def test_a13_3_added_metrics_join_those_of_the_model_and_win(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        spec = linear_model_fn(features, labels, mode, params)
        return spec if mode == ModeKeys.PREDICT else spec._replace(predictions={"y": labels * 0.0})

    def metric_fn(labels: Any, predictions: Any, features: Any, config: Any) -> dict[str, Any]:
        mean = keras.metrics.Mean(name="seed")
        mean.update_state(float(config.tf_random_seed))
        return {
            "mae": v1.metrics.mean(tf.abs(labels - predictions["y"])),
            "first": v1.metrics.mean(features[:, 0]),
            "seed": mean,
        }

    estimator = in_process(model_fn, params={"learning_rate": 0.01}, tf_random_seed=3)
    extended = add_metrics(estimator, metric_fn)
    assert type(extended) is Estimator
    assert extended.model_dir == estimator.model_dir
    assert extended.config == estimator.config

    extended.train(endless_input_fn, steps=3)
    found, before = extended.evaluate(one_pass_input_fn), estimator.evaluate(one_pass_input_fn)

    assert found.keys() == {"loss", "global_step", "mae", "first", "seed"}
    assert before.keys() == {"loss", "global_step", "mae"}
    assert found["loss"] == before["loss"]
    assert found["mae"] != before["mae"]
    assert found["seed"] == 3
    assert next(extended.predict(one_pass_input_fn)).keys() == {"y", "x"}


def test_a13_3_added_metrics_keep_the_warm_start(in_process: Make, tmp_path: Path) -> None:
    source = estimator_in(in_process)
    source.train(endless_input_fn, steps=3)
    warm = Estimator(
        linear_model_fn, tmp_path / "warm", source.config.replace(model_dir=None), {}, warm_start_from=source.model_dir
    )
    extended = add_metrics(warm, lambda labels: {"mean": v1.metrics.mean(labels)})
    expected = source.evaluate(one_pass_input_fn)
    found = extended.evaluate(one_pass_input_fn)
    assert found["mae"] == expected["mae"]
    assert "mean" in found


def test_a13_3_the_arguments_of_a_metric_fn_are_checked(in_process: Make) -> None:
    estimator = estimator_in(in_process)
    with pytest.raises(ValueError, match=r"metric_fn .* has following not expected args: \['mode'\]"):
        add_metrics(estimator, lambda labels, mode: {})
    with pytest.raises(TypeError, match="metric_fn must be callable"):
        add_metrics(estimator, "metric")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`estimator` must have type"):
        add_metrics(None, lambda labels: {})  # type: ignore[arg-type]


def test_a13_3_a_logit_fn_gets_what_it_accepts() -> None:
    with tf.Graph().as_default():
        x = tf.constant([[1.0]])

        def logit_fn(features: Any, mode: str, params: Any) -> Any:
            assert (mode, params) == (ModeKeys.TRAIN, {"scale": 2})
            return features * params["scale"]

        config = RunConfig()
        logits = call_logit_fn(logit_fn, x, ModeKeys.TRAIN, {"scale": 2}, config)
        assert isinstance(logits, tf.Tensor)
        assert call_logit_fn(lambda features, config: {"a": features}, x, "train", {}, config)["a"] is x
        for wrong in (None, [x], {"a": 1.0}, {1: x}):
            with pytest.raises(ValueError, match="logit_fn should return a Tensor or a dictionary mapping strings"):
                call_logit_fn(lambda features, wrong=wrong: wrong, x, "train", {}, config)


# 4. Hooks under tf.estimator's names


@pytest.mark.parametrize("name", hooks.NAMES)
def test_a13_4_hooks_are_tensorflows_own(name: str) -> None:
    expected = getattr(v1.train, name)
    assert getattr(hooks, name) is expected
    assert getattr(ray_estimator, name) is expected


def test_a13_4_names_that_are_not_there_say_so() -> None:
    for module in (hooks, ray_estimator, ray_estimator.experimental):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'NoHook'"):
            module.NoHook  # noqa: B018
    assert dir(hooks) == sorted(hooks.NAMES)


def test_a13_4_tensors_are_logged_by_name(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        spec = linear_model_fn(features, labels, mode, params)
        tf.identity(spec.loss, name="what_it_costs")
        return spec

    with caplog.at_level(logging.INFO, "tensorflow"):
        in_process(model_fn, params={}).train(
            endless_input_fn, steps=2, hooks=[ray_estimator.LoggingTensorHook(["what_it_costs"], every_n_iter=1)]
        )
    assert caplog.text.count("what_it_costs = ") == 2
    assert np.isfinite(float(caplog.text.partition("what_it_costs = ")[2].split()[0]))
