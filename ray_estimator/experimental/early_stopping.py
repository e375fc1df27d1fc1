"""Hooks that stop training early, by the results of evaluations or by any condition."""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_estimator import hooks
from ray_estimator._checkpoints.event_files import EVENT_FILES
from ray_estimator._engine import entrypoints
from ray_estimator._storage.storage import Storage
from ray_estimator.estimator import Estimator, check_estimator

logger = logging.getLogger(__name__)


def make_early_stopping_hook(
    estimator: Estimator,
    should_stop_fn: Callable[[], bool],
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
) -> Any:
    """Return a hook that stops training when `should_stop_fn` returns True.

    It differs from tf.estimator's as follows. It works with any number of workers, also with `run_every_secs`. There is
    no variable ``signal_early_stopping/STOP``, because the ranks of a group agree to stop as part of each step.
    `train_and_evaluate` ends with the training.

    The function is called on the chief only, after the first step and at intervals. All ranks then stop at the same
    step, and the last step is saved. The function is serialized and sent to the chief, like all user code.

    Args:
        estimator: The Estimator that trains.
        should_stop_fn: Function without arguments that returns whether to stop.
        run_every_secs: Seconds between calls. Excludes `run_every_steps`.
        run_every_steps: Steps between calls. `run_every_secs` must then be None.

    Returns:
        A `SessionRunHook` for `Estimator.train` or `TrainSpec`.

    Raises:
        TypeError: `estimator` is not an Estimator, or `should_stop_fn` is not callable.
        ValueError: Both intervals are set, or none.
    """
    check_estimator(estimator)
    if not callable(should_stop_fn):
        raise TypeError(f"`should_stop_fn` must be callable, got {should_stop_fn!r}.")
    if (run_every_secs is None) == (run_every_steps is None):
        raise ValueError(
            f"Only one of `run_every_secs` and `run_every_steps` must be set, got {run_every_secs!r} and "
            f"{run_every_steps!r}. To count steps, pass run_every_secs=None as well."
        )
    return entrypoints.stop_hook(should_stop_fn, run_every_secs, run_every_steps)


def stop_if_higher_hook(
    estimator: Estimator,
    metric_name: str,
    threshold: float,
    eval_dir: str | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
) -> Any:
    """Return a hook that stops training once a metric of an evaluation is higher than `threshold`.

    Args:
        estimator: The Estimator that trains.
        metric_name: Name of the metric: "accuracy", "loss", or a key of `eval_metric_ops`.
        threshold: Value that the metric must exceed.
        eval_dir: Directory of the evaluations' event files, path or URL. None: `estimator.eval_dir()`.
        min_steps: First global step whose evaluation counts.
        run_every_secs: As in `make_early_stopping_hook`.
        run_every_steps: As in `make_early_stopping_hook`.

    Returns:
        A `SessionRunHook`. During training it raises a ValueError if there are evaluations, but none has the metric.

    Raises:
        TypeError: As in `make_early_stopping_hook`.
        ValueError: As in `make_early_stopping_hook`.
    """
    metric = _metric(estimator, metric_name, eval_dir, min_steps)
    crossed = functools.partial(_crosses, metric, threshold, "higher")
    return make_early_stopping_hook(estimator, crossed, run_every_secs, run_every_steps)


def stop_if_lower_hook(
    estimator: Estimator,
    metric_name: str,
    threshold: float,
    eval_dir: str | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
) -> Any:
    """Return a hook that stops training once a metric of an evaluation is lower than `threshold`.

    The arguments and errors are those of `stop_if_higher_hook`.
    """
    metric = _metric(estimator, metric_name, eval_dir, min_steps)
    crossed = functools.partial(_crosses, metric, threshold, "lower")
    return make_early_stopping_hook(estimator, crossed, run_every_secs, run_every_steps)


def stop_if_no_increase_hook(
    estimator: Estimator,
    metric_name: str,
    max_steps_without_increase: int,
    eval_dir: str | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
) -> Any:
    """Return a hook that stops training once a metric of evaluations has stopped increasing.

    Args:
        estimator: The Estimator that trains.
        metric_name: As in `stop_if_higher_hook`.
        max_steps_without_increase: Maximum number of global steps between the best evaluation and a later one.
        eval_dir: As in `stop_if_higher_hook`.
        min_steps: As in `stop_if_higher_hook`.
        run_every_secs: As in `make_early_stopping_hook`.
        run_every_steps: As in `make_early_stopping_hook`.

    Returns:
        A `SessionRunHook`, as in `stop_if_higher_hook`.

    Raises:
        TypeError: As in `make_early_stopping_hook`.
        ValueError: As in `make_early_stopping_hook`.
    """
    metric = _metric(estimator, metric_name, eval_dir, min_steps)
    stalled = functools.partial(_stalls, metric, max_steps_without_increase, "higher")
    return make_early_stopping_hook(estimator, stalled, run_every_secs, run_every_steps)


def stop_if_no_decrease_hook(
    estimator: Estimator,
    metric_name: str,
    max_steps_without_decrease: int,
    eval_dir: str | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
) -> Any:
    """Return a hook that stops training once a metric of evaluations has stopped decreasing.

    The arguments and errors are those of `stop_if_no_increase_hook`.
    """
    metric = _metric(estimator, metric_name, eval_dir, min_steps)
    stalled = functools.partial(_stalls, metric, max_steps_without_decrease, "lower")
    return make_early_stopping_hook(estimator, stalled, run_every_secs, run_every_steps)


def make_stop_at_checkpoint_step_hook(
    estimator: Estimator, last_step: int, wait_after_file_check_secs: float = 30
) -> Any:
    """Return a hook that stops training at a global step and saves its checkpoint.

    In tf.estimator the workers wait for the chief's last checkpoint. Here every rank knows the last step in advance,
    and the chief saves it before the group ends, so no worker waits.

    Args:
        estimator: The Estimator that trains.
        last_step: Global step to stop at.
        wait_after_file_check_secs: No effect, accepted for compatibility.

    Raises:
        TypeError: `estimator` is not an Estimator.
        ValueError: `last_step` is None.
    """
    check_estimator(estimator)
    if last_step is None:
        raise ValueError("last_step must be specified.")
    return hooks.StopAtStepHook(last_step=last_step)


def read_eval_metrics(eval_dir: str, storage_options: Mapping[str, Any] | None = None) -> dict[int, dict[str, float]]:
    """Return the results of evaluations: metrics by name, by global step in ascending order.

    A damaged event file is read up to the damage, with a warning. Imports TensorFlow.

    Args:
        eval_dir: Directory of the evaluations' event files, path or URL.
        storage_options: fsspec options for `eval_dir`.
    """
    return entrypoints.event_scalars(Storage(storage_options), eval_dir, EVENT_FILES)


@dataclass(frozen=True)
class _Metric:
    """A metric of evaluations. It is serialized and sent to the chief."""

    name: str
    eval_dir: str
    storage: Storage
    min_steps: int

    def values(self) -> dict[int, float]:
        """Return the metric by global step, in ascending order.

        Raises:
            ValueError: There are evaluations, but none has the metric.
        """
        found = entrypoints.event_scalars(self.storage, self.eval_dir, EVENT_FILES)
        if found and not any(self.name in metrics for metrics in found.values()):
            known = sorted({name for metrics in found.values() for name in metrics})
            raise ValueError(
                f"Early stopping needs a metric of the evaluations in {self.eval_dir}, got {self.name!r}. They have "
                f"{known}: use one of these, or pass the eval_dir of another evaluation."
            )
        return {
            step: metrics[self.name]
            for step, metrics in found.items()
            if step >= self.min_steps and self.name in metrics
        }


def _metric(estimator: Any, name: str, eval_dir: str | None, min_steps: int) -> _Metric:
    check_estimator(estimator)
    storage = Storage(estimator.config.storage_options)
    # Workers run in other directories, where a relative path would be a different one.
    return _Metric(name, storage.normalize(eval_dir or estimator.eval_dir()), storage, min_steps)


_BETTER: Mapping[str, Callable[[float, float], bool]] = {"higher": operator.gt, "lower": operator.lt}


def _crosses(metric: _Metric, threshold: float, direction: str) -> bool:
    for step, value in metric.values().items():
        if _BETTER[direction](value, threshold):
            logger.info(
                'At step %s, metric "%s" has value %s, which is %s than the threshold %s for early stopping.',
                step,
                metric.name,
                value,
                direction,
                threshold,
            )
            return True
    return False


def _stalls(metric: _Metric, max_steps: int, direction: str) -> bool:
    best: float | None = None
    best_step = 0
    for step, value in metric.values().items():
        if best is None or _BETTER[direction](value, best):
            best, best_step = value, step
        if step - best_step >= max_steps:
            logger.info(
                'Metric "%s" was not %s for %s steps (maximum: %s). Training stops early.',
                metric.name,
                direction,
                step - best_step,
                max_steps,
            )
            return True
    return False
