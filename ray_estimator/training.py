"""`train_and_evaluate`: train once, and evaluate and export its checkpoints during training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from ray_estimator._checkpoints.store import Checkpoint
from ray_estimator._driver.training_run import TrainingRun, prepare_training
from ray_estimator._engine import entrypoints
from ray_estimator._numbers import check_number
from ray_estimator._process.signals import Stop, stopped_by_signals
from ray_estimator._storage.storage import Storage
from ray_estimator._validation.arguments import check_steps, checked_hooks, checked_listeners
from ray_estimator._validation.user_functions import check_input_fn
from ray_estimator.errors import CheckpointNotFoundError
from ray_estimator.estimator import Estimator, check_estimator, job_builder_of
from ray_estimator.exporters import Exporter
from ray_estimator.inputs import InputFn
from ray_estimator.spec import ModeKeys

if TYPE_CHECKING:
    from ray_estimator._runtime.ray_runtime import RayRuntime

_POLL_SECS = 1.0
_REMIND_SECS = 600.0
_END_TIMEOUT_SECS = 120.0

logger = logging.getLogger(__name__)


class _TrainFields(NamedTuple):
    input_fn: Any
    max_steps: int | None
    hooks: tuple[Any, ...]
    saving_listeners: tuple[Any, ...]


class TrainSpec(_TrainFields):
    """The training of `train_and_evaluate`.

    Args:
        input_fn: As in `Estimator.train`.
        max_steps: Global step to stop at. None: until the input ends or a hook requests a stop.
        hooks: As in `Estimator.train`.
        saving_listeners: As in `Estimator.train`.

    Raises:
        ValueError: `max_steps` is not positive.
        TypeError: `input_fn`, a hook or a listener has the wrong type.
    """

    __slots__ = ()

    def __new__(
        cls,
        input_fn: InputFn,
        max_steps: int | None = None,
        hooks: Iterable[Any] | None = None,
        saving_listeners: Iterable[Any] | None = None,
    ) -> TrainSpec:
        """Check every field; see the class."""
        check_input_fn(input_fn, ModeKeys.TRAIN)
        check_steps("max_steps", max_steps)
        return super().__new__(
            cls, input_fn, max_steps, tuple(checked_hooks(hooks)), tuple(checked_listeners(saving_listeners))
        )


class _EvalFields(NamedTuple):
    input_fn: Any
    steps: int | None
    name: str | None
    hooks: tuple[Any, ...]
    exporters: tuple[Exporter, ...]
    start_delay_secs: float
    throttle_secs: float


class EvalSpec(_EvalFields):
    """The evaluations and exports of `train_and_evaluate`.

    Args:
        input_fn: As in `Estimator.evaluate`.
        steps: Number of batches. None: all of the input.
        name: Events are written to ``eval_<name>``.
        hooks: As in `Estimator.evaluate`.
        exporters: An `Exporter` or several, called after each evaluation.
        start_delay_secs: Seconds of training before the first evaluation, with workers. In process it has no effect, as
            in tf.estimator without a cluster.
        throttle_secs: Minimum number of seconds between the starts of two evaluations, except the last one.

    Raises:
        ValueError: `steps` is not positive, a number of seconds is negative, or two exporters have the same name.
        TypeError: An argument has the wrong type.
    """

    __slots__ = ()

    def __new__(
        cls,
        input_fn: InputFn,
        steps: int | None = 100,
        name: str | None = None,
        hooks: Iterable[Any] | None = None,
        exporters: Exporter | Iterable[Exporter] | None = None,
        start_delay_secs: float = 120,
        throttle_secs: float = 600,
    ) -> EvalSpec:
        """Check every field; see the class."""
        check_input_fn(input_fn, ModeKeys.EVAL)
        check_steps("steps", steps)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"`name` must be string, got {name!r}.")
        for argument, secs in (("start_delay_secs", start_delay_secs), ("throttle_secs", throttle_secs)):
            check_number(argument, secs, zero_allowed=True, requirement=f"Must specify {argument} >= 0")
        return super().__new__(
            cls,
            input_fn,
            steps,
            name,
            tuple(checked_hooks(hooks)),
            _checked_exporters(exporters),
            start_delay_secs,
            throttle_secs,
        )


def train_and_evaluate(
    estimator: Estimator, train_spec: TrainSpec, eval_spec: EvalSpec
) -> tuple[dict[str, Any] | None, list[Any]]:
    """Train once, and evaluate and export checkpoints during training. Runs on the driver.

    Every checkpoint except the one that training starts from is evaluated, unless the last evaluation started less than
    `EvalSpec.throttle_secs` ago. The last checkpoint always is. `RunConfig.save_checkpoints_steps` and
    `save_checkpoints_secs` set when checkpoints are saved. Exporters run on the driver after each evaluation.

    In process (``num_workers=0``) training waits for each evaluation, as in tf.estimator without a cluster. With
    workers, training continues: the driver polls model_dir and evaluates the newest checkpoint in Ray tasks, which need
    a CPU (or `RunConfig.task_resources`) that the training group does not hold. Evaluations wait until one is free. The
    last one runs after training in any case.

    Training ends at `TrainSpec.max_steps`, at the end of its input, when a hook requests it, or when an evaluation or
    an exporter fails. Ctrl-C and SIGTERM stop training as in `Estimator.train`, and with workers they end a running
    evaluation immediately. Nothing is evaluated or exported after that. If `max_steps` is reached already, nothing is
    trained, and the newest checkpoint is evaluated.

    Args:
        estimator: The Estimator.
        train_spec: The training.
        eval_spec: The evaluations and exports.

    Returns:
        The metrics of the last evaluation, and the results of its exporters, in their order. Unlike in tf.estimator,
        they are returned with workers too.

    Raises:
        TypeError: An argument has the wrong type.
        RuntimeError: There is no checkpoint to evaluate.
        Exception: As raised by `Estimator.train`, `Estimator.evaluate` and the exporters.
    """
    check_estimator(estimator)
    for name, spec, kind in (("train_spec", train_spec, TrainSpec), ("eval_spec", eval_spec, EvalSpec)):
        if not isinstance(spec, kind):
            raise TypeError(f"`{name}` must have type ray_estimator.{kind.__name__}, got {spec!r}.")
    evaluations = _Evaluations(estimator, eval_spec, train_spec.max_steps)
    if estimator.config.num_workers == 0:
        _evaluate_between_steps(estimator, train_spec, evaluations)
    else:
        _evaluate_during_training(estimator, train_spec, evaluations)
    evaluations.run_last()
    return evaluations.metrics, evaluations.exports


def _evaluate_between_steps(estimator: Estimator, spec: TrainSpec, evaluations: _Evaluations) -> None:
    errors: list[BaseException] = []
    stop = Stop()

    def after_save() -> None:
        if stop.why is not None:
            return
        try:
            evaluations.run_if_due()
        except BaseException as error:
            errors.append(error)
            raise

    listeners = [*spec.saving_listeners, entrypoints.after_save_listener(after_save)]
    builder = job_builder_of(estimator)
    training = prepare_training(builder, spec.input_fn, None, spec.hooks, spec.max_steps, listeners)
    if training is not None:
        training.run(stop)
    if errors:
        # The training session takes an exporter's StopIteration for the end of its own input.
        raise errors[0]


def _evaluate_during_training(estimator: Estimator, spec: TrainSpec, evaluations: _Evaluations) -> None:
    listeners, config = list(spec.saving_listeners), estimator.config
    if not (config.save_checkpoints_secs or config.save_checkpoints_steps):
        # Only a user's hook can save now. Workers that are given a listener refuse to train without such a hook.
        listeners.append(entrypoints.idle_listener)
    builder = job_builder_of(estimator)
    training = prepare_training(builder, spec.input_fn, None, spec.hooks, spec.max_steps, listeners)
    if training is None:
        return
    evaluations.warn_if_not_throttled()
    cluster = builder.cluster()
    # Connecting to Ray sets signal handlers, so it comes before ours.
    cluster.connect()
    with (
        _TrainingThread(training, config.stop_timeout_secs) as thread,
        stopped_by_signals(thread.stop, raise_at_first=True),
    ):
        while not thread.ended.wait(_POLL_SECS):
            evaluations.poll(cluster)


class _TrainingThread:
    """A training run in a thread.

    If a signal ends the `with` block, the run stops with a checkpoint. If another exception does, it ends immediately.

    Args:
        training: The training run.
        stop_timeout_secs: How long stopping with a checkpoint may take.

    Attributes:
        ended: Set when the run has ended.
        stop: Request to stop the run.
    """

    def __init__(self, training: TrainingRun, stop_timeout_secs: float | None) -> None:
        self.ended = threading.Event()
        self.stop = Stop()
        self._training = training
        self._stop_timeout_secs = stop_timeout_secs
        self._error: BaseException | None = None

    def __enter__(self) -> _TrainingThread:
        threading.Thread(target=self._run, name="training", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            if self.stop.why is not None:
                self._wait_for_stop()
            self._end_at_once(error)
        elif self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._training.run(self.stop)
        except BaseException as error:  # raised by __exit__, in the thread of the caller
            self._error = error
        finally:
            self.ended.set()

    def _wait_for_stop(self) -> None:
        """Wait until the run has stopped by itself. Another signal ends the wait."""
        timeout = self._stop_timeout_secs
        try:
            self.ended.wait(None if timeout is None else timeout + _END_TIMEOUT_SECS)
        except (KeyboardInterrupt, SystemExit):
            logger.warning("Received a second signal: training ends immediately.")

    def _end_at_once(self, cause: BaseException) -> None:
        if self.ended.is_set() and self._error is not None:
            cause.add_note(f"Training failed as well: {self._error!r}")
        self.stop.end_at_once()
        if not self.ended.wait(_END_TIMEOUT_SECS):
            logger.warning("The training workers did not end within %g seconds.", _END_TIMEOUT_SECS)


class _Evaluations:
    """The evaluations of one `train_and_evaluate`, and when each is due.

    Args:
        estimator: The Estimator.
        spec: How to evaluate.
        max_steps: Last global step of training; None if unknown.
        clock: Returns seconds; for tests.

    Attributes:
        metrics: The metrics of the last evaluation; None before the first.
        exports: The results of the exporters after it.
    """

    def __init__(
        self,
        estimator: Estimator,
        spec: EvalSpec,
        max_steps: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics: dict[str, Any] | None = None
        self.exports: list[Any] = []
        self._estimator = estimator
        self._spec = spec
        self._max_steps = max_steps
        self._clock = clock
        self._began_at = self._reminded_at = clock()
        self._last_began_at: float | None = None
        self._evaluated: Checkpoint | None = None
        newest = self._newest()
        self._first_step = 0 if newest is None else newest.step
        self._warned_of_waiting = False

    def run_if_due(self) -> None:
        """Evaluate the newest checkpoint, which was just saved, unless evaluations are throttled."""
        newest = self._newest()
        if newest is None:
            return
        if self._is_throttled():
            logger.info("Skip the current checkpoint eval due to throttle secs (%g secs).", self._spec.throttle_secs)
        else:
            self._run(newest)

    def warn_if_not_throttled(self) -> None:
        """Warn if evaluations run all the time during training."""
        if self._spec.throttle_secs == 0:
            logger.warning(
                "EvalSpec.throttle_secs is 0: every checkpoint is evaluated as soon as it is saved, on the same "
                "cluster as training. Raise throttle_secs if this slows training down."
            )

    def poll(self, cluster: RayRuntime) -> None:
        """Evaluate the newest checkpoint if it is new, evaluations are due, and the cluster has free resources."""
        if self._clock() - self._began_at < self._spec.start_delay_secs or self._is_throttled():
            return
        newest = self._newest()
        if newest is None or newest.step <= self._first_step or newest == self._evaluated:
            self._remind_of_no_checkpoint()
        elif cluster.has_room():
            self._run_unless_deleted(newest)
        else:
            self._warn_once_of_waiting(newest)

    def run_last(self) -> None:
        """Evaluate the newest checkpoint, unless it is evaluated already."""
        newest = self._newest()
        if newest is None:
            raise RuntimeError(
                f"There was no new checkpoint after the training in {self._estimator.model_dir}, so nothing could be "
                "evaluated. Set RunConfig.save_checkpoints_steps or RunConfig.save_checkpoints_secs."
            )
        if newest != self._evaluated:
            self._run(newest)

    def _newest(self) -> Checkpoint | None:
        path = self._estimator.latest_checkpoint()
        return None if path is None else Checkpoint.at(path)

    def _is_throttled(self) -> bool:
        last = self._last_began_at
        return last is not None and self._clock() - last < self._spec.throttle_secs

    def _run(self, checkpoint: Checkpoint) -> None:
        self._last_began_at = self._clock()
        spec = self._spec
        metrics = self._estimator.evaluate(
            spec.input_fn, spec.steps, spec.hooks, checkpoint_path=checkpoint.path, name=spec.name
        )
        exports = [self._export(exporter, checkpoint, metrics) for exporter in spec.exporters]
        self.metrics, self.exports, self._evaluated = metrics, exports, checkpoint
        self._reminded_at = self._clock()

    def _export(self, exporter: Exporter, checkpoint: Checkpoint, metrics: dict[str, Any]) -> Any:
        storage = Storage(self._estimator.config.storage_options)
        return exporter.export(
            estimator=self._estimator,
            export_path=storage.join(self._estimator.model_dir, "export", exporter.name),
            checkpoint_path=checkpoint.path,
            eval_result=metrics,
            is_the_final_export=self._max_steps is not None and int(metrics["global_step"]) >= self._max_steps,
        )

    def _run_unless_deleted(self, checkpoint: Checkpoint) -> None:
        """Evaluate the checkpoint. If newer ones replace it during the evaluation, one of those is next."""
        try:
            self._run(checkpoint)
        except Exception as error:  # whatever the store raises for a missing file
            if not self._is_deleted(checkpoint):
                raise
            logger.warning(
                "The checkpoint %s was deleted before its evaluation ended (%s). Evaluations take longer than "
                "checkpoints are kept: raise RunConfig(keep_checkpoint_max=%s).",
                checkpoint.path,
                error,
                self._estimator.config.keep_checkpoint_max,
            )

    def _is_deleted(self, checkpoint: Checkpoint) -> bool:
        try:
            job_builder_of(self._estimator).store.find(checkpoint.path)
        except CheckpointNotFoundError:
            return True
        return False

    def _warn_once_of_waiting(self, checkpoint: Checkpoint) -> None:
        if self._warned_of_waiting:
            return
        self._warned_of_waiting = True
        needed = {"CPU": 1, **(self._estimator.config.task_resources or {})}
        logger.warning(
            "The evaluation of %s waits, because the training group leaves no free %s in the cluster. Evaluations run "
            "when it is free, and the last one after training. Lower num_workers or resources_per_worker in "
            "RunConfig.scaling_config, or add nodes.",
            checkpoint.path,
            needed,
        )

    def _remind_of_no_checkpoint(self) -> None:
        if self._clock() - self._reminded_at > _REMIND_SECS:
            self._reminded_at = self._clock()
            logger.warning("There is no new checkpoint to evaluate in %s.", self._estimator.model_dir)


def _checked_exporters(exporters: Any) -> tuple[Exporter, ...]:
    if exporters is None:
        return ()
    if isinstance(exporters, Exporter):
        exporters = [exporters]
    listed: Sequence[Any] = list(exporters) if isinstance(exporters, Iterable) else [exporters]
    if not all(isinstance(exporter, Exporter) for exporter in listed):
        raise TypeError(f"`exporters` must be an Exporter, an iterable of Exporter, or `None`, got {exporters!r}.")
    names = [exporter.name for exporter in listed]
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"An Exporter must have a string name that is not empty. All exporter names: {names}.")
    if len(set(names)) < len(names):
        raise ValueError(f"`exporters` must have unique names. All exporter names: {names}.")
    return tuple(listed)
