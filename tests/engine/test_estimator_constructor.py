"""The constructor: accepted and rejected arguments, and properties."""

from __future__ import annotations

import argparse
import collections
import copy
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from ray import cloudpickle
from ray.train import ScalingConfig
from support.models import endless_input_fn, linear_model_fn, one_pass_input_fn

from ray_estimator import Estimator, EstimatorSpec, ModeKeys, RunConfig

Make = Callable[..., Any]


def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    return linear_model_fn(features, labels, mode, {})


def with_extra(features: Any, labels: Any, mode: str, extra: Any) -> EstimatorSpec:
    assert extra == "x"
    return model_fn(features, labels, mode)


class Model:
    def method(self, features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return model_fn(features, labels, mode)

    def __call__(self, features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return model_fn(features, labels, mode)


# 1


def test_a1_1_a_model_fn_is_needed() -> None:
    with pytest.raises(ValueError, match=r"model_fn must be provided to Estimator\."):
        Estimator(None)  # type: ignore[arg-type]


def test_a1_1_a_model_fn_can_be_called() -> None:
    with pytest.raises(TypeError, match="model_fn must be callable, got 'model'"):
        Estimator("model")  # type: ignore[arg-type]


# 2


def test_a1_2_every_name_is_accepted_and_labels_are_optional(in_process: Make) -> None:
    in_process(lambda features, labels, mode, params, config, model_dir: None, params={})
    in_process(lambda features: None)


def test_a1_2_features_are_needed() -> None:
    with pytest.raises(ValueError, match=r"model_fn \(.*\) must include features argument"):
        Estimator(lambda x, labels: None)


def test_a1_2_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has following not expected args: \['alpha', 'beta'\]"):
        Estimator(lambda features, labels, alpha, beta=1: None)


# 3


def test_a1_3_params_that_are_not_accepted_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"does not include params argument, but params \(\{'a': 1\}\) is passed to Es"
    ):
        Estimator(model_fn, params={"a": 1})


def test_a1_3_params_that_are_not_given_are_warned_of_and_empty(
    in_process: Make, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def noting_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        seen.append(params)
        return model_fn(features, labels, mode)

    estimator = in_process(noting_model_fn)
    assert "params are not passed to Estimator" in caplog.text
    estimator.train(endless_input_fn, steps=1)

    assert seen == [{}]


def test_a1_3_params_that_are_given_are_not_warned_of(in_process: Make, caplog: pytest.LogCaptureFixture) -> None:
    in_process(linear_model_fn, params={})

    assert "params" not in caplog.text


# 4


@pytest.mark.parametrize(
    "kind",
    [
        model_fn,
        lambda features, labels, mode: model_fn(features, labels, mode),
        lambda features, labels, mode: with_extra(features, labels, mode, "x"),
        functools.partial(with_extra, extra="x"),
        functools.partial(functools.partial(with_extra, extra="y"), extra="x"),
        Model().method,
        Model(),
        functools.partial(Model().method),
    ],
    ids=["function", "lambda", "closure", "partial", "partial-of-partial", "method", "object", "partial-of-method"],
)
def test_a1_4_any_callable_will_do(in_process: Make, kind: Callable[..., Any]) -> None:
    assert in_process(kind).train(endless_input_fn, steps=1).evaluate(one_pass_input_fn)["global_step"] == 1


# 5


@pytest.mark.parametrize("config", [{"model_dir": "x"}, ScalingConfig(), RunConfig])
def test_a1_5_config_must_be_a_run_config(config: Any) -> None:
    with pytest.raises(ValueError, match="config must be an instance of RunConfig, got"):
        Estimator(model_fn, config=config)


def test_a1_5_without_a_config_there_is_the_default_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        estimator = Estimator(model_fn, tmp_path)

    assert "Using default config." in caplog.messages
    assert estimator.config == RunConfig(str(tmp_path))


# 6


def test_a1_6_two_model_dirs_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"`model_dir` are set both in constructor and `RunConfig`, but with different values.*/a'.*/b'",
    ):
        Estimator(model_fn, tmp_path / "a", RunConfig(tmp_path / "b"))


@pytest.mark.parametrize(
    ("argument", "of_config"), [("run", None), (None, "run"), ("run", "run"), (Path("run"), "run")]
)
def test_a1_6_the_model_dir_is_seen_in_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: Any, of_config: Any
) -> None:
    monkeypatch.chdir(tmp_path)

    estimator = Estimator(model_fn, argument, RunConfig(of_config))

    assert estimator.model_dir == estimator.config.model_dir == str(tmp_path / "run")


def test_a1_6_an_empty_model_dir_is_refused() -> None:
    with pytest.raises(ValueError, match="model_dir should be non-empty"):
        Estimator(model_fn, "")


@pytest.mark.parametrize("model_dir", [3, b"run"])
def test_a1_6_a_model_dir_is_a_string_or_a_path(model_dir: Any) -> None:
    with pytest.raises(TypeError, match="model_dir must be a str, a path or None, got "):
        Estimator(model_fn, model_dir)


# 7


def test_a1_7_config_and_params_are_copies(in_process: Make) -> None:
    given = {"sizes": [8]}
    estimator = in_process(linear_model_fn, params=given, storage_options={"nested": [1]})

    given["sizes"].append(16)
    estimator.params["sizes"].append(32)
    estimator.config.storage_options["nested"].append(2)

    assert estimator.params == {"sizes": [8]}
    assert estimator.config.storage_options == {"nested": [1]}


Point = collections.namedtuple("Point", ["learning_rate"])


@pytest.mark.parametrize(
    "params", [argparse.Namespace(learning_rate=0.1), Point(0.1), collections.OrderedDict(learning_rate=0.1)]
)
def test_a1_7_params_may_be_of_any_kind(in_process: Make, params: Any) -> None:
    seen = []

    def noting_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        seen.append(params)
        return model_fn(features, labels, mode)

    estimator = in_process(noting_model_fn, params=params).train(endless_input_fn, steps=1)

    assert type(estimator.params) is type(seen[0]) is type(params)
    assert estimator.params == seen[0] == params
    assert seen[0] is not params or isinstance(params, tuple)


def test_a1_7_the_model_fn_property_has_the_params_bound(in_process: Make) -> None:
    def returning_model_fn(features: Any, labels: Any, mode: str, params: Any, config: Any, model_dir: str) -> Any:
        tf.constant([params["a"]], name="a")
        tf.constant(f"{config.tf_random_seed} {model_dir}", name="rest")
        return EstimatorSpec(mode, predictions={"x": features})

    estimator = in_process(returning_model_fn, params={"a": 3})

    with tf.Graph().as_default() as graph, v1.Session() as session:
        spec = estimator.model_fn(tf.constant([1.0]), None, ModeKeys.PREDICT, RunConfig(tf_random_seed=7))
        assert isinstance(spec, EstimatorSpec)
        assert session.run(spec.predictions["x"]) == [1.0]
        assert session.run(graph.get_tensor_by_name("a:0")) == [3]
        assert session.run(graph.get_tensor_by_name("rest:0")).decode() == f"7 {estimator.model_dir}"


def test_a1_7_the_model_fn_property_makes_another_estimators_model(in_process: Make, tmp_path: Path) -> None:
    """As add_metrics and other wrappers do."""
    inner = in_process(linear_model_fn, params={"learning_rate": 0.01})

    def outer_model_fn(features: Any, labels: Any, mode: str, config: RunConfig) -> EstimatorSpec:
        spec = inner.model_fn(features, labels, mode, config)
        return spec._replace(eval_metric_ops={**spec.eval_metric_ops, "rows": v1.metrics.mean(tf.shape(labels)[0])})

    outer = in_process(outer_model_fn, model_dir=tmp_path / "outer").train(endless_input_fn, steps=1)

    assert outer.evaluate(one_pass_input_fn).keys() == {"mae", "rows", "loss", "global_step"}


def test_a1_7_the_model_fn_property_checks_what_the_engine_checks(in_process: Make) -> None:
    with pytest.raises(ValueError, match="model_fn does not take labels, but input_fn returns labels"):
        in_process(lambda features: None).model_fn(1, 2, ModeKeys.TRAIN, RunConfig())
    with pytest.raises(ValueError, match="model_fn should return an EstimatorSpec"):
        in_process(lambda features: None).model_fn(1, None, ModeKeys.TRAIN, RunConfig())


# 8


class Regressor(Estimator):
    """A canned estimator, like those of tf.estimator."""

    def __init__(self, rate: float, model_dir: Any = None, config: Any = None, warm_start_from: Any = None) -> None:
        self.rate = rate
        super().__init__(
            model_fn=lambda features, labels, mode: linear_model_fn(features, labels, mode, {"learning_rate": rate}),
            model_dir=model_dir,
            config=config,
            warm_start_from=warm_start_from,
        )

    def bias(self) -> float:
        """An additional method."""
        return float(self.get_variable_value("dense/bias")[0])


IN_PROCESS = RunConfig(scaling_config=ScalingConfig(num_workers=0))


def test_a1_8_a_subclass_brings_its_model_and_adds_methods(tmp_path: Path) -> None:
    first = Regressor(0.1, tmp_path / "first", IN_PROCESS).train(endless_input_fn, steps=3)
    second = Regressor(1e-9, tmp_path / "second", IN_PROCESS, warm_start_from=first.latest_checkpoint())

    second.train(endless_input_fn, steps=1)

    assert first.bias() != 0
    assert second.bias() == pytest.approx(first.bias(), rel=1e-4)


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "config", "params", "_with_checkpoint"])
def test_a1_8_a_subclass_may_not_override_members(name: str) -> None:
    parent = type("Parent", (Regressor,), {name: lambda self: None})
    for kind in (parent, type("Child", (parent,), {})):
        with pytest.raises(ValueError, match=rf"Subclasses of Estimator cannot override members.*\['{name}'\]"):
            kind(0.1)


def test_a1_8_a_subclass_may_say_which_checkpoint_is_the_latest(tmp_path: Path) -> None:
    class First(Regressor):
        @property
        def model_fn(self) -> Any:
            return super().model_fn

        def latest_checkpoint(self) -> str:
            return f"{self.model_dir}/model.ckpt-0"

        def experimental_export_all_saved_models(self) -> None: ...

    estimator = First(0.1, tmp_path, IN_PROCESS).train(endless_input_fn, steps=3)

    assert estimator.evaluate(one_pass_input_fn)["global_step"] == 0
    assert estimator.get_variable_value("global_step") == 0


# 9


class NoteSessionConfig(v1.train.SessionRunHook):
    def __init__(self) -> None:
        self.config: Any = None

    def after_create_session(self, session: Any, coord: Any) -> None:
        self.config = session._config


@pytest.mark.parametrize(
    "given", [None, v1.ConfigProto(log_device_placement=False, intra_op_parallelism_threads=3)], ids=["default", "own"]
)
def test_a1_9_the_session_config_is_that_of_every_session_and_of_user_code(in_process: Make, given: Any) -> None:
    seen = []

    def noting_model_fn(features: Any, labels: Any, mode: str, config: RunConfig) -> EstimatorSpec:
        seen.append(config.session_config)
        return model_fn(features, labels, mode)

    def input_fn(config: RunConfig) -> tf.data.Dataset:
        seen.append(config.session_config)
        return one_pass_input_fn()

    estimator = in_process(noting_model_fn, session_config=given)
    hooks = [NoteSessionConfig() for _ in range(3)]
    estimator.train(input_fn, hooks=hooks[:1])
    estimator.evaluate(input_fn, hooks=hooks[1:2])
    list(estimator.predict(input_fn, hooks=hooks[2:]))

    assert len(seen) == 6
    for config in (*seen, *(hook.config for hook in hooks)):
        if given is None:
            assert config.allow_soft_placement
            assert config.graph_options.rewrite_options.meta_optimizer_iterations == 1
        else:
            assert config.intra_op_parallelism_threads == 3
            assert not config.allow_soft_placement
    assert estimator.config.session_config == given


# 11


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda estimator: cloudpickle.loads(cloudpickle.dumps(estimator))])
def test_a1_11_an_estimator_that_was_used_can_be_copied(in_process: Make, copied: Callable[[Any], Any]) -> None:
    estimator = in_process(linear_model_fn, params={"learning_rate": 0.1}, session_config=v1.ConfigProto())
    estimator.train(endless_input_fn, steps=2, hooks=[v1.train.StepCounterHook()])
    expected = estimator.evaluate(one_pass_input_fn)
    next(estimator.predict(one_pass_input_fn))

    twin = copied(estimator)

    assert twin.evaluate(one_pass_input_fn) == expected
    assert twin.train(endless_input_fn, steps=1).get_variable_value("global_step") == 3
    assert (twin.config, twin.params) == (estimator.config, estimator.params)


def test_a1_11_an_estimator_of_workers_holds_nothing_of_this_process(tmp_path: Path) -> None:
    config = RunConfig(tmp_path, scaling_config=ScalingConfig(num_workers=2), session_config=v1.ConfigProto())
    estimator = Estimator(lambda features, labels, mode: None, config=config, warm_start_from="elsewhere")

    for twin in (copy.deepcopy(estimator), cloudpickle.loads(cloudpickle.dumps(estimator))):
        assert twin.config == estimator.config
        assert twin.model_dir == estimator.model_dir
