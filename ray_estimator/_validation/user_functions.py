"""What the user's functions accept by name, and whether that fits what they will be given.

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
    """Return the names of the arguments that `fn` can be given by name, in order.

    For functions, lambdas, `functools.partial` (what it binds does not count), bound methods and callable
    objects. `*args` and `**kwargs` are no names; a builtin that hides its signature has none.
    """
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    bound = fn.keywords if isinstance(fn, functools.partial) else {}
    return tuple(p.name for p in _parameters(fn) if p.kind in by_name and p.name not in bound)


def accepts(fn: Callable[..., Any], name: str) -> bool:
    """Whether `fn` can be given an argument of this name: it has one, or it has `**kwargs`."""
    return name in accepted_arguments(fn) or any(p.kind is p.VAR_KEYWORD for p in _parameters(fn))


def call_with_accepted(fn: Callable[..., Any], **available: Any) -> Any:
    """Call `fn` with those of the available arguments that it accepts: all of them if it has `**kwargs`."""
    return fn(**{name: value for name, value in available.items() if accepts(fn, name)})


def check_model_fn(model_fn: Any, params: Any) -> None:
    """Check on the driver that `model_fn` accepts what the engine will give it.

    A model_fn that accepts `params` where none are given is logged: it will receive `{}`.

    Raises:
        ValueError: It is None, does not accept `features`, demands or accepts an argument that nobody gives,
            or does not accept `params` though some are given.
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
            f"model_fn ({model_fn}) has following not expected args: {unknown}. It may have "
            f"{list(_MODEL_FN_ARGUMENTS)}; bind others with functools.partial, or pass them in params."
        )
    if params is not None and not accepts(model_fn, "params"):
        raise ValueError(
            f"model_fn ({model_fn}) does not include params argument, but params ({params}) is passed to Estimator. "
            "Add the argument, or leave params out."
        )
    if params is None and "params" in accepted_arguments(model_fn):
        logger.warning("model_fn (%s) includes params argument, but params are not passed to Estimator.", model_fn)


def call_model_fn(model_fn: Callable[..., Any], *, labels: Any, **available: Any) -> EstimatorSpec:
    """Call `model_fn`, in a graph, with those of the arguments that it accepts.

    Raises:
        ValueError: There are labels, which it does not accept, or it returns no spec.
    """
    if labels is not None and not accepts(model_fn, "labels"):
        raise ValueError("model_fn does not take labels, but input_fn returns labels.")
    return as_spec(call_with_accepted(model_fn, labels=labels, **available))


def check_input_fn(input_fn: Any, mode: str) -> None:
    """Check on the driver that `input_fn` is an input for this mode.

    Raises:
        TypeError: It is neither a callable nor made by `dataset_input_fn`, or it needs an argument that no
            input_fn is given.
    """
    if isinstance(input_fn, DatasetInput):
        return
    if not callable(input_fn):
        raise TypeError(
            f"input_fn for mode {mode!r} must be a callable or the result of dataset_input_fn, "
            f"got a {type(input_fn).__module__}.{type(input_fn).__qualname__}. {_cure(input_fn)}"
        )
    unknown = sorted(_required_names(input_fn) - set(_INPUT_FN_ARGUMENTS))
    if unknown:
        raise TypeError(
            f"input_fn ({input_fn}) for mode {mode!r} needs the arguments {unknown}, but is given only those of "
            f"{list(_INPUT_FN_ARGUMENTS)} that it accepts. Bind others with a lambda or functools.partial."
        )


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(fn).parameters.values())
    except ValueError:
        return []


def _required_names(fn: Callable[..., Any]) -> set[str]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in _parameters(fn) if p.default is p.empty and p.kind not in variadic}


def _cure(input_fn: Any) -> str:
    if is_ray_dataset(input_fn):
        return "Use dataset_input_fn(dataset, batch_size=...)."
    return "Use dataset_input_fn(...) for a Ray Dataset, or a function that returns a tf.data.Dataset or tensors."
