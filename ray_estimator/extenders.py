"""Functions that extend an Estimator's model_fn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray_estimator._validation.user_functions import accepted_arguments, call_with_accepted
from ray_estimator.config import RunConfig
from ray_estimator.estimator import Estimator, check_estimator, derived_estimator
from ray_estimator.spec import ModeKeys

_METRIC_FN_ARGUMENTS = ("features", "labels", "predictions", "config")


def add_metrics(estimator: Estimator, metric_fn: Callable[..., Mapping[str, Any]]) -> Estimator:
    """Return an Estimator that evaluates further metrics in addition to those of its model_fn.

    Args:
        estimator: Estimator to extend. It is not changed. The new one has the same model_dir, config, params and warm
            start.
        metric_fn: Function of any of ``(features, labels, predictions, config)``. It runs in the EVAL graph, after
            model_fn, and returns metrics by name, like `EstimatorSpec.eval_metric_ops`. They replace metrics of
            model_fn with the same name.

    Raises:
        ValueError: `metric_fn` has other arguments.
        TypeError: `estimator` is not an Estimator, or `metric_fn` is not callable.
    """
    check_estimator(estimator)
    _check_metric_fn(metric_fn)
    model_fn = estimator.model_fn

    def model_fn_with_metrics(features: Any, labels: Any, mode: str, config: RunConfig) -> Any:
        spec = model_fn(features, labels, mode, config)
        if mode != ModeKeys.EVAL:
            return spec
        added = call_with_accepted(
            metric_fn, features=features, labels=labels, predictions=spec.predictions, config=config
        )
        return spec._replace(eval_metric_ops={**(spec.eval_metric_ops or {}), **added})

    return derived_estimator(estimator, model_fn_with_metrics)


def _check_metric_fn(metric_fn: Any) -> None:
    if not callable(metric_fn):
        raise TypeError(f"metric_fn must be callable, got {metric_fn!r}.")
    unknown = sorted(set(accepted_arguments(metric_fn)) - set(_METRIC_FN_ARGUMENTS))
    if unknown:
        raise ValueError(
            f"metric_fn ({metric_fn}) has following not expected args: {unknown}. The valid ones are "
            f"{list(_METRIC_FN_ARGUMENTS)}; bind others with functools.partial."
        )
