"""One training run on the driver: from the arguments of `Estimator.train` to its result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray_estimator._checkpoints.lease import hold
from ray_estimator._checkpoints.store import Checkpoint
from ray_estimator._driver.job_builder import JobBuilder
from ray_estimator._jobs.last_step import last_step_of, split_stop_hooks
from ray_estimator._process.signals import Stop, stopped_by_signals
from ray_estimator._reporting.summary import Summary
from ray_estimator._validation.arguments import check_argument_order, check_steps, checked_hooks, checked_listeners
from ray_estimator._validation.user_functions import check_input_fn
from ray_estimator.errors import RayEstimatorError
from ray_estimator.inputs import InputFn
from ray_estimator.spec import ModeKeys

if TYPE_CHECKING:
    from ray_estimator._jobs.jobs import TrainJob
    from ray_estimator._runtime import Runtime
    from ray_estimator._runtime.data.rows import RowSource

logger = logging.getLogger(__name__)


def prepare_training(
    builder: JobBuilder,
    input_fn: InputFn,
    steps: int | None,
    hooks: Any,
    max_steps: int | None,
    saving_listeners: Any,
) -> TrainingRun | None:
    """Check the arguments of `Estimator.train` and serialize its user code; None if `max_steps` is reached already.

    Call it in the thread whose Keras settings the workers get. The run may be made in another thread.

    Raises:
        ValueError, TypeError, ShippingError: As `Estimator.train` raises them.
    """
    check_argument_order(steps, hooks)
    check_input_fn(input_fn, ModeKeys.TRAIN)
    check_steps("steps", steps)
    check_steps("max_steps", max_steps)
    if steps is not None and max_steps is not None:
        raise ValueError("Can not provide both steps and max_steps.")
    hooks = checked_hooks(hooks)
    listeners = checked_listeners(saving_listeners)
    start = _start(builder)
    if _is_done(start, max_steps):
        return None
    runtime = builder.runtime()
    other_hooks, _ = split_stop_hooks(hooks, 0)
    make_job, rows = builder.training(runtime, input_fn, start, other_hooks, listeners)
    return TrainingRun(builder, runtime, make_job, rows, hooks, steps, max_steps)


class TrainingRun:
    """A training run that is ready to start; `prepare_training` makes it.

    Args:
        builder: The Estimator's.
        runtime: Where to train.
        make_job: Makes the job from its steps and its lease.
        rows: The Ray Dataset to train on; None for other inputs.
        hooks: The user's hooks, which may limit the number of steps.
        steps: As in `Estimator.train`.
        max_steps: As in `Estimator.train`.
    """

    def __init__(
        self,
        builder: JobBuilder,
        runtime: Runtime,
        make_job: Callable[..., TrainJob],
        rows: RowSource | None,
        hooks: Sequence[Any],
        steps: int | None,
        max_steps: int | None,
    ) -> None:
        self._builder = builder
        self._runtime = runtime
        self._make_job = make_job
        self._rows = rows
        self._hooks = hooks
        self._steps = steps
        self._max_steps = max_steps

    def run(self, stop: Stop) -> None:
        """Train until the last step, the end of the input, or a request in `stop`; in the main thread also signals."""
        builder, runtime = self._builder, self._runtime
        summary = Summary(builder.config)
        runtime.check_model_dir()
        with hold(builder.model_dir, builder.storage, on_loss=stop.end_at_once) as lease:
            # Only the holder of the lease trains here, so the checkpoint found now stays the newest.
            start = _start(builder)
            if _is_done(start, self._max_steps):
                return
            first_step = _step_of(start)
            _, hooks_last_step = split_stop_hooks(self._hooks, first_step)
            last_step = last_step_of(first_step, self._steps, self._max_steps, hooks_last_step)
            rows = builder.resumed_rows(self._rows, start, lease.generation)
            source = None if rows is None else rows.source
            job = self._make_job(first_step=first_step, last_step=last_step, generation=lease.generation, source=source)
            # Connecting to Ray sets signal handlers, so ours are set after it.
            with stopped_by_signals(stop):
                result = runtime.train(job, rows, stop)
                if stop.why is not None:
                    _log_stop(builder, stop.why, result.step)
        if result.step == first_step and stop.why is None:
            logger.warning("Training with estimator made no steps. Perhaps input is empty or misspecified.")
        logger.info("Loss for final step: %s.", result.loss)
        summary.trained(result, first_step)


def _start(builder: JobBuilder) -> Checkpoint | None:
    """Return the checkpoint to resume from."""
    try:
        return builder.store.start()
    except RayEstimatorError:
        raise
    except Exception:  # any error of any store
        builder.runtime().check_model_dir()  # raises a ModelDirAccessError, which says more, if it fails too
        raise


def _log_stop(builder: JobBuilder, why: str, step: int) -> None:
    newest = builder.store.latest()
    saved = "no checkpoint is published" if newest is None else f"the checkpoint of step {newest.step} is published"
    logger.warning("%s: stopped at step %d; %s. Call train again to resume.", why, step, saved)


def _step_of(start: Checkpoint | None) -> int:
    return 0 if start is None else start.step


def _is_done(start: Checkpoint | None, max_steps: int | None) -> bool:
    if max_steps is None or _step_of(start) < max_steps:
        return False
    logger.info("Skipping training since max_steps has already saved.")
    return True
