"""Arguments that user functions accept by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import ray.data

from ray_estimator._validation.user_functions import accepted_arguments, accepts, call_with_accepted, check_input_fn
from ray_estimator.inputs import dataset_input_fn
from ray_estimator.spec import ModeKeys


def plain(features: Any, labels: Any, mode: Any) -> Any:
    return features, labels, mode


def with_params(features: Any, params: Any, *, config: Any = None) -> Any:
    return features, params, config


def with_kwargs(features: Any, **rest: Any) -> Any:
    return features, rest


class Models:
    def method(self, features: Any, mode: Any) -> Any:
        return features, mode

    @classmethod
    def of_class(cls, features: Any) -> Any:
        return features

    def __call__(self, features: Any, labels: Any) -> Any:
        return features, labels


@pytest.mark.parametrize(
    ("fn", "names"),
    [
        (plain, ("features", "labels", "mode")),
        (with_params, ("features", "params", "config")),
        (with_kwargs, ("features",)),
        (lambda features, labels: None, ("features", "labels")),
        (functools.partial(plain, mode="x"), ("features", "labels")),
        (functools.partial(plain, 1), ("labels", "mode")),
        (functools.partial(functools.partial(plain, mode="x"), labels=1), ("features",)),
        (Models().method, ("features", "mode")),
        (Models.of_class, ("features",)),
        (Models(), ("features", "labels")),
        (functools.partial(Models().method, mode="x"), ("features",)),
        (lambda features, /, *more: None, ()),
    ],
)
def test_accepted_arguments_are_the_keyword_arguments(fn: Callable[..., Any], names: tuple[str, ...]) -> None:
    assert accepted_arguments(fn) == names


def test_a_wrapper_accepts_the_arguments_of_its_function() -> None:
    @functools.wraps(plain)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    assert accepted_arguments(wrapper) == ("features", "labels", "mode")


def test_a_builtin_without_signature_accepts_nothing() -> None:
    assert accepted_arguments(dict) == ()


def test_accepts_counts_double_star() -> None:
    assert accepts(with_kwargs, "labels")
    assert not accepts(plain, "params")


AVAILABLE = {"features": 1, "labels": 2, "mode": 3}


@pytest.mark.parametrize(
    ("fn", "result"),
    [
        (plain, (1, 2, 3)),
        (functools.partial(plain, mode="bound"), (1, 2, "bound")),
        (Models().method, (1, 3)),
        (Models(), (1, 2)),
        (with_kwargs, (1, {"labels": 2, "mode": 3})),
        (lambda features: features, 1),
    ],
)
def test_call_passes_only_accepted_arguments(fn: Callable[..., Any], result: Any) -> None:
    assert call_with_accepted(fn, **AVAILABLE) == result


@pytest.mark.parametrize(
    "input_fn",
    [
        lambda: None,
        lambda mode, params, config, input_context: None,
        lambda params, batch_size=3: None,
        lambda *args, **kwargs: None,
        functools.partial(lambda path, mode: None, "path"),
        functools.partial(lambda path, mode: None, path="path"),
        dataset_input_fn(lambda: None, batch_size=2),  # type: ignore[arg-type, return-value]
    ],
)
def test_an_input_fn_may_require_available_arguments(input_fn: Any) -> None:
    check_input_fn(input_fn, ModeKeys.TRAIN)


@pytest.mark.parametrize("input_fn", [None, 3, [1.0, 2.0]])
def test_an_input_fn_that_is_not_callable_is_rejected(input_fn: Any) -> None:
    with pytest.raises(TypeError, match="input_fn for mode 'eval' must be a callable or the result of dataset_input"):
        check_input_fn(input_fn, ModeKeys.EVAL)


def test_a_bare_ray_dataset_is_rejected_with_the_fix() -> None:
    class UnreadDataset(ray.data.Dataset):  # type: ignore[misc]
        _current_executor = None  # asked for by __del__

        def __init__(self) -> None: ...

    with pytest.raises(TypeError, match=r"Use dataset_input_fn\(dataset, batch_size=\.\.\.\)"):
        check_input_fn(UnreadDataset(), ModeKeys.TRAIN)


def test_an_input_fn_that_requires_other_arguments_is_rejected() -> None:
    with pytest.raises(TypeError, match=r"requires the arguments \['path'\]"):
        check_input_fn(lambda path, mode: None, ModeKeys.TRAIN)
