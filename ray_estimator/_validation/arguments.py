"""Check the arguments of an Estimator. Imports neither TensorFlow nor Ray."""

from __future__ import annotations

import logging
import numbers
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from ray_estimator._compat.names import needs_legacy_keras
from ray_estimator._numbers import check_number
from ray_estimator._process import legacy_keras
from ray_estimator._storage.storage import Storage
from ray_estimator.config import RunConfig

logger = logging.getLogger(__name__)


def checked_config(config: Any, model_dir: Any) -> RunConfig:
    """Return the config, or the default one, with the model_dir of one of the two arguments."""
    if config is None:
        logger.info("Using default config.")
        config = RunConfig()
    if not isinstance(config, RunConfig):
        raise ValueError(f"config must be an instance of RunConfig, got {config!r}.")
    chosen = config if model_dir is None else config.replace(model_dir=model_dir)
    if config.model_dir not in (None, chosen.model_dir):
        raise ValueError(
            "`model_dir` are set both in constructor and `RunConfig`, but with different values. In constructor: "
            f"'{chosen.model_dir}', in `RunConfig`: '{config.model_dir}'. Omit one of them."
        )
    if chosen.model_dir is None:
        chosen = chosen.replace(model_dir=tempfile.mkdtemp())
        logger.warning("Using temporary folder as model directory: %s", chosen.model_dir)
    # Workers run in other directories, where a relative path would be a different one.
    return chosen.replace(model_dir=Storage(chosen.storage_options).normalize(str(chosen.model_dir)))


def check_keras(model_fn: Callable[..., Any], config: RunConfig) -> None:
    """Check that a canned estimator of the package tensorflow-estimator gets the legacy Keras that it needs."""
    if needs_legacy_keras(model_fn) and not (config.legacy_keras or legacy_keras.is_enabled()):
        raise ValueError(
            "This canned estimator is written for Keras 2: config expects legacy_keras=True, got False. "
            "Install tf_keras (pip install 'ray-estimator[legacy-keras]') and use RunConfig(legacy_keras=True, ...); "
            f"with num_workers=0 also set {legacy_keras.NAME}=1 before TensorFlow is imported."
        )


def check_argument_order(steps: Any, hooks: Any) -> None:
    """Check that steps and hooks are not swapped, because their order differs from tf.estimator's."""
    if steps is not None and not isinstance(steps, numbers.Integral):
        raise TypeError(
            f"steps must be an int or None, got {steps!r}. The positional order is (input_fn, steps, hooks, ...); "
            "pass hooks by name: hooks=[...]."
        )
    if isinstance(hooks, numbers.Integral):
        raise TypeError(
            f"hooks must be a list of hooks, got {hooks!r}. The positional order is (input_fn, steps, hooks, ...); "
            "pass the number by name: steps=..."
        )


def check_steps(name: str, value: Any) -> None:
    """Check that a number of steps is None or a positive integer."""
    check_number(name, value, integer=True, or_none=" or None", requirement=f"Must specify {name} > 0")


def checked_hooks(hooks: Any) -> list[Any]:
    """Return the hooks and hook factories as a list.

    Raises:
        TypeError: An element is neither.
    """
    if hooks is None:
        return []
    if not isinstance(hooks, Iterable):
        raise TypeError(f"Hooks must be a SessionRunHook, got {hooks!r}. Pass a list of them.")
    listed = list(hooks)
    for hook in listed:
        if not _looks_like_hook(hook) and not callable(hook):
            raise TypeError(f"Hooks must be a SessionRunHook, got {hook!r}")
    return listed


def _looks_like_hook(hook: Any) -> bool:
    return hasattr(hook, "before_run") and hasattr(hook, "after_run")


def checked_listeners(listeners: Any) -> list[Any]:
    """Return the saving listeners and listener factories as a list.

    Raises:
        TypeError: An element is neither.
    """
    if listeners is None:
        return []
    if not isinstance(listeners, Iterable):
        raise TypeError(f"saving_listeners must be a list of CheckpointSaverListener, got {listeners!r}")
    listed = list(listeners)
    for listener in listed:
        if not hasattr(listener, "after_save") and not callable(listener):
            raise TypeError(f"saving_listeners must be a list of CheckpointSaverListener, got {listener!r}")
    return listed
