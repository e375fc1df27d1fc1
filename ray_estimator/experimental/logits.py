"""`call_logit_fn`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray_estimator._validation.user_functions import call_with_accepted
from ray_estimator.config import RunConfig


def call_logit_fn(
    logit_fn: Callable[..., Any], features: Any, mode: str, params: Mapping[str, Any] | None, config: RunConfig | None
) -> Any:
    """Call a function that builds logits, with the arguments that it accepts. Runs inside a model_fn.

    Args:
        logit_fn: Function of `features` and any of ``(mode, params, config)``.
        features: The features of model_fn.
        mode: A `ModeKeys` value.
        params: Hyperparameters.
        config: The configuration.

    Returns:
        The logits: a Tensor, or a dict of Tensors by head name.

    Raises:
        ValueError: `logit_fn` returned something else.
    """
    import tensorflow as tf

    logits = call_with_accepted(logit_fn, features=features, mode=mode, params=params, config=config)
    by_name = logits if isinstance(logits, dict) else {"logits": logits}
    if not all(isinstance(name, str) and isinstance(value, tf.Tensor) for name, value in by_name.items()):
        raise ValueError(f"logit_fn should return a Tensor or a dictionary mapping strings to Tensors, got {logits!r}.")
    return logits
