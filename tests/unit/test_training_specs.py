"""Arguments that `TrainSpec`, `EvalSpec` and `train_and_evaluate` reject before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from ray_estimator import EvalSpec, Exporter, TrainSpec, train_and_evaluate


def input_fn() -> Any:
    raise AssertionError("Nothing reads the input here.")


class Named(Exporter):
    """An exporter with any name."""

    def __init__(self, name: Any) -> None:
        self._name = name

    @property
    def name(self) -> Any:
        return self._name

    def export(self, *arguments: Any, **named: Any) -> None:
        raise AssertionError("Nothing is exported here.")


class Listener:
    """Looks like a saving listener."""

    def after_save(self, session: Any, global_step_value: int) -> None: ...


class Hook:
    """Looks like a hook."""

    def before_run(self, run_context: Any) -> None: ...

    def after_run(self, run_context: Any, run_values: Any) -> None: ...


def test_a_train_spec_holds_its_arguments() -> None:
    hook, listener = Hook(), Listener()
    spec = TrainSpec(input_fn, 10, (each for each in [hook]), [listener])
    assert spec == (input_fn, 10, (hook,), (listener,))
    assert (spec.max_steps, spec.hooks) == (10, (hook,))
    assert TrainSpec(input_fn) == (input_fn, None, (), ())


def test_an_eval_spec_has_tf_estimators_defaults() -> None:
    assert EvalSpec(input_fn) == (input_fn, 100, None, (), (), 120, 600)
    one = Named("one")
    assert EvalSpec(input_fn, exporters=one).exporters == (one,)
    several = (Named("one"), Named("two"))
    assert EvalSpec(input_fn, steps=None, exporters=iter(several)).exporters == several


@pytest.mark.parametrize("kind", [TrainSpec, EvalSpec])
def test_an_input_must_be_callable(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"input_fn .* must be a callable"):
        kind("input")


@pytest.mark.parametrize("kind", [TrainSpec, EvalSpec])
def test_hooks_must_be_hooks(kind: Any) -> None:
    with pytest.raises(TypeError, match="Hooks must be a SessionRunHook, got 'hook'"):
        kind(input_fn, hooks=["hook"])


def test_listeners_must_be_listeners() -> None:
    with pytest.raises(TypeError, match="must be a list of CheckpointSaverListener, got 1"):
        TrainSpec(input_fn, saving_listeners=[1])


@pytest.mark.parametrize(("kind", "name"), [(TrainSpec, "max_steps"), (EvalSpec, "steps")])
@pytest.mark.parametrize("steps", [0, -1])
def test_steps_must_be_positive(kind: Any, name: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"Must specify {name} > 0, got {steps}"):
        kind(input_fn, **{name: steps})


@pytest.mark.parametrize("name", ["start_delay_secs", "throttle_secs"])
def test_seconds_must_not_be_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"Must specify {name} >= 0, got -1"):
        EvalSpec(input_fn, **{name: -1})
    with pytest.raises(TypeError, match=f"{name} must be a number, got '1'"):
        EvalSpec(input_fn, **{name: "1"})
    assert getattr(EvalSpec(input_fn, **{name: 0}), name) == 0


def test_the_name_of_an_evaluation_must_be_a_string() -> None:
    with pytest.raises(TypeError, match="`name` must be string, got 3"):
        EvalSpec(input_fn, name=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("exporters", ["exporter", 1, [1], [Named("one"), None]])
def test_exporters_must_be_exporters(exporters: Any) -> None:
    with pytest.raises(TypeError, match="`exporters` must be an Exporter, an iterable of Exporter, or `None`"):
        EvalSpec(input_fn, exporters=exporters)


@pytest.mark.parametrize("name", [None, "", 3])
def test_an_exporter_must_have_a_name(name: Any) -> None:
    with pytest.raises(ValueError, match=r"must have a string name that is not empty. All exporter names: \['one', "):
        EvalSpec(input_fn, exporters=[Named("one"), Named(name)])


def test_exporters_must_have_unique_names() -> None:
    with pytest.raises(ValueError, match="`exporters` must have unique names"):
        EvalSpec(input_fn, exporters=[Named("one"), Named("one")])


def test_an_exporter_must_have_a_name_and_export() -> None:
    class Half(Exporter):
        @property
        def name(self) -> str:
            return "half"

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_arguments_of_the_wrong_type_are_rejected(tmp_path: Any) -> None:
    from ray_estimator import Estimator

    def model_fn(features: Any) -> None: ...

    estimator = Estimator(model_fn, tmp_path)
    train_spec, eval_spec = TrainSpec(input_fn), EvalSpec(input_fn)
    with pytest.raises(TypeError, match="`estimator` must have type"):
        train_and_evaluate("estimator", train_spec, eval_spec)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`train_spec` must have type"):
        train_and_evaluate(estimator, eval_spec, eval_spec)  # type: ignore[arg-type]
    for wrong in (None, train_spec):
        with pytest.raises(TypeError, match="`eval_spec` must have type"):
            train_and_evaluate(estimator, train_spec, wrong)  # type: ignore[arg-type]
