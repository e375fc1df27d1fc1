"""Check and call user functions by the names of their arguments.

Importing this module imports neither TensorFlow nor Ray.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from ray_estimator.inputs import DatasetInput, is_ray_dataset
from ray_estimator.spec import EstimatorSpec, as_spec

logger = logging.getLogger(__name__)

_MODEL_FN_ARGUMENTS = ("features", "labels", "mode", "params", "config", "model_dir")
_INPUT_FN_ARGUMENTS = ("mode", "params", "config", "input_context")


def accepted_arguments(fn: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the keyword arguments of `fn`, in order.

    `fn` may be a function, lambda, `functools.partial` (without the arguments that it binds), bound method or callable
    object. `*args` and `**kwargs` are not included. A builtin without a signature has none.
    """
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    bound = fn.keywords if isinstance(fn, functools.partial) else {}
    return tuple(p.name for p in _parameters(fn) if p.kind in by_name and p.name not in bound)


def accepts(fn: Callable[..., Any], name: str) -> bool:
    """Whether `fn` accepts a keyword argument with this name, directly or in `**kwargs`."""
    return name in accepted_arguments(fn) or any(p.kind is p.VAR_KEYWORD for p in _parameters(fn))


def call_with_accepted(fn: Callable[..., Any], **available: Any) -> Any:
    """Call `fn` with the available arguments that it accepts, which are all of them if it has `**kwargs`."""
    return fn(**{name: value for name, value in available.items() if accepts(fn, name)})


def check_model_fn(model_fn: Any, params: Any) -> None:
    """Check on the driver that `model_fn` accepts the arguments that it will be called with.

    If `model_fn` accepts `params` and there are none, a warning is logged, and it will get `{}`.

    Raises:
        ValueError: It is None, does not accept `features`, has an unknown argument, or does not accept `params`
            although there are some.
        TypeError: It is not callable.
    """
    if model_fn is None:
        raise ValueError("model_fn must be provided to Estimator.")
    if not callable(model_fn):
        raise TypeError(f"model_fn must be callable, got {model_fn!r}.")
    if not accepts(model_fn, "features"):
        raise ValueError(f"model_fn ({model_fn}) must include features argument.")
    unknown = sorted(set(accepted_arguments(model_fn)) - {*_MODEL_FN_ARGUMENTS, "self"})
    if unknown:
        raise ValueError(
            f"model_fn ({model_fn}) has following not expected args: {unknown}. The valid ones are "
            f"{list(_MODEL_FN_ARGUMENTS)}; bind others with functools.partial, or pass them in params."
        )
    if params is not None and not accepts(model_fn, "params"):
        raise ValueError(
            f"model_fn ({model_fn}) does not include params argument, but params ({params}) is passed to Estimator. "
            "Add the argument, or omit params."
        )
    if params is None and "params" in accepted_arguments(model_fn):
        logger.warning("model_fn (%s) includes params argument, but params are not passed to Estimator.", model_fn)


def call_model_fn(model_fn: Callable[..., Any], *, labels: Any, **available: Any) -> EstimatorSpec:
    """Call `model_fn`, in a graph, with the arguments that it accepts.

    Raises:
        ValueError: There are labels, which it does not accept, or it does not return a spec.
    """
    if labels is not None and not accepts(model_fn, "labels"):
        raise ValueError("model_fn does not take labels, but input_fn returns labels.")
    return as_spec(call_with_accepted(model_fn, labels=labels, **available))


def check_input_fn(input_fn: Any, mode: str) -> None:
    """Check on the driver that `input_fn` is an input for this mode.

    Raises:
        TypeError: It is neither callable nor from `dataset_input_fn`, or it requires an unknown argument.
    """
    if isinstance(input_fn, DatasetInput):
        return
    if not callable(input_fn):
        raise TypeError(
            f"input_fn for mode {mode!r} must be a callable or the result of dataset_input_fn, "
            f"got a {type(input_fn).__module__}.{type(input_fn).__qualname__}. {_advice(input_fn)}"
        )
    unknown = sorted(_required_names(input_fn) - set(_INPUT_FN_ARGUMENTS))
    if unknown:
        raise TypeError(
            f"input_fn ({input_fn}) for mode {mode!r} requires the arguments {unknown}, but the available ones are "
            f"{list(_INPUT_FN_ARGUMENTS)}. Bind others with a lambda or functools.partial."
        )


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(fn).parameters.values())
    except ValueError:
        return []


def _required_names(fn: Callable[..., Any]) -> set[str]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in _parameters(fn) if p.default is p.empty and p.kind not in variadic}


def _advice(input_fn: Any) -> str:
    if is_ray_dataset(input_fn):
        return "Use dataset_input_fn(dataset, batch_size=...)."
    return "Use dataset_input_fn(...) for a Ray Dataset, or a function that returns a tf.data.Dataset or tensors."
