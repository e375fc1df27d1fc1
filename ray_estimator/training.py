"""`train_and_evaluate`: one training run, its checkpoints evaluated and exported as they appear."""

from __future__ import annotations

import logging
import numbers
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from ray_estimator._checkpoints.store import Checkpoint
from ray_estimator._engine import entrypoints
from ray_estimator._process.signals import Stop, stopped_by_signals
from ray_estimator._storage.storage import Storage
from ray_estimator._validation.arguments import check_positive, checked_hooks, checked_listeners
from ray_estimator._validation.user_functions import check_input_fn
from ray_estimator.errors import CheckpointNotFoundError
from ray_estimator.estimator import Estimator, check_estimator
from ray_estimator.exporters import Exporter
from ray_estimator.inputs import InputFn
from ray_estimator.spec import ModeKeys

if TYPE_CHECKING:
    from ray_estimator._runtime.ray_runtime import RayRuntime

_LOOK_SECS = 1.0
_REMIND_SECS = 600.0
_GIVE_UP_SECS = 120.0

logger = logging.getLogger(__name__)


class _TrainFields(NamedTuple):
    input_fn: Any
    max_steps: int | None
    hooks: tuple[Any, ...]
    saving_listeners: tuple[Any, ...]


class TrainSpec(_TrainFields):
    """What `train_and_evaluate` trains on.

    Args:
        input_fn: As in `Estimator.train`.
        max_steps: The global step to end at. None: until the input ends or a hook stops.
        hooks: As in `Estimator.train`.
        saving_listeners: As in `Estimator.train`.

    Raises:
        ValueError: `max_steps` is not positive.
        TypeError: `input_fn`, a hook or a listener is of the wrong kind.
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
        check_positive("max_steps", max_steps)
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
    """What `train_and_evaluate` evaluates on, how often, and what it exports.

    Args:
        input_fn: As in `Estimator.evaluate`.
        steps: How many batches. None: all of the input.
        name: Events go to ``eval_<name>``.
        hooks: As in `Estimator.evaluate`.
        exporters: An `Exporter` or several, called after each evaluation.
        start_delay_secs: With workers, seconds to train before the first evaluation. In process it has no effect, as in
            tf.estimator without a cluster.
        throttle_secs: At least so many seconds lie between the beginnings of two evaluations, but for the last one.

    Raises:
        ValueError: `steps` is not positive, a number of seconds is negative, or two exporters have one name.
        TypeError: An argument is of the wrong kind.
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
        check_positive("steps", steps)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"`name` must be string, given: {name!r}.")
        _check_secs("start_delay_secs", start_delay_secs)
        _check_secs("throttle_secs", throttle_secs)
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
    """Trains once, and evaluates and exports checkpoints on the way. Runs on the driver.

    Every checkpoint but the one that training begins with is evaluated, unless the last evaluation began less than
    `EvalSpec.throttle_secs` ago; the last checkpoint always is. Checkpoints come as `RunConfig.save_checkpoints_steps`
    or `save_checkpoints_secs` say. Exporters follow each evaluation, on the driver.

    In process (``num_workers=0``) training waits for each evaluation, as in tf.estimator without a cluster. With
    workers, training goes on: the driver looks at model_dir and evaluates the newest checkpoint in Ray tasks, which
    need a CPU (or `RunConfig.task_resources`) that the training group does not hold. While none is free evaluations
    wait; the last one is made after training, in any case.

    Training ends at `TrainSpec.max_steps`, with its input, or when a hook requests it. An error of an evaluation or an
    exporter ends it too. Ctrl-C and SIGTERM end training as in `Estimator.train` (and with workers an evaluation, at
    once); nothing is evaluated or exported after that. If `max_steps` was reached before, nothing is trained, and the
    newest checkpoint is evaluated.

    Args:
        estimator: The Estimator.
        train_spec: What to train on.
        eval_spec: What to evaluate on, and what to export.

    Returns:
        The metrics of the last evaluation, and what its exporters returned, in their order. Unlike tf.estimator's, it
        returns them with workers too.

    Raises:
        TypeError: An argument is of the wrong kind.
        RuntimeError: There was no checkpoint to evaluate.
        Exception: What `Estimator.train`, `Estimator.evaluate` and the exporters raise.
    """
    check_estimator(estimator)
    for name, spec, kind in (("train_spec", train_spec, TrainSpec), ("eval_spec", eval_spec, EvalSpec)):
        if not isinstance(spec, kind):
            raise TypeError(f"`{name}` must have type ray_estimator.{kind.__name__}, given: {spec!r}.")
    evaluations = _Evaluations(estimator, eval_spec, train_spec.max_steps)
    if estimator.config.num_workers == 0:
        _evaluate_between_steps(estimator, train_spec, evaluations)
    else:
        _evaluate_beside_training(estimator, train_spec, evaluations)
    evaluations.make_last()
    return evaluations.metrics, evaluations.exports


def _evaluate_between_steps(estimator: Estimator, spec: TrainSpec, evaluations: _Evaluations) -> None:
    errors: list[BaseException] = []
    stop = Stop()

    def after_save() -> None:
        if stop.why is not None:
            return
        try:
            evaluations.make_if_due()
        except BaseException as error:
            errors.append(error)
            raise

    listeners = [*spec.saving_listeners, entrypoints.after_save_listener(after_save)]
    train = estimator._training(spec.input_fn, None, spec.hooks, spec.max_steps, listeners)
    if train is not None:
        train(stop)
    if errors:
        # The training session takes an exporter's StopIteration for the end of its own input.
        raise errors[0]


def _evaluate_beside_training(estimator: Estimator, spec: TrainSpec, evaluations: _Evaluations) -> None:
    listeners, config = list(spec.saving_listeners), estimator.config
    if not (config.save_checkpoints_secs or config.save_checkpoints_steps):
        # Only a hook of the user's can save now. Given a listener, workers refuse at once to train without one.
        listeners.append(entrypoints.idle_listener)
    # Packed in this thread, whose Keras settings it takes along.
    train = estimator._training(spec.input_fn, None, spec.hooks, spec.max_steps, listeners)
    if train is None:
        return
    evaluations.warn_of_haste()
    runtime: Any = estimator._job_builder.runtime()
    # Before signals are listened to: connecting to Ray sets a handler, too.
    runtime.connect()
    with _InThread(train, config.stop_timeout_secs) as training, stopped_by_signals(training.stop, raise_at_first=True):
        while not training.ended.wait(_LOOK_SECS):
            evaluations.look(runtime)


class _InThread:
    """A training run in a thread of its own.

    When the block is left by a signal the run stops with a checkpoint; by another exception, it is given up.

    Args:
        train: Runs it.
        stop_timeout_secs: How long it takes to stop with a checkpoint, at most.

    Attributes:
        ended: Is set when the run has ended.
        stop: The wish to end it.
    """

    def __init__(self, train: Callable[[Stop], None], stop_timeout_secs: float | None) -> None:
        self.ended = threading.Event()
        self.stop = Stop()
        self._train = train
        self._stop_timeout_secs = stop_timeout_secs
        self._error: BaseException | None = None

    def __enter__(self) -> _InThread:
        threading.Thread(target=self._run, name="training", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            if self.stop.why is not None:
                self._wait_for_stop()
            self._give_up(error)
        elif self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._train(self.stop)
        except BaseException as error:
            self._error = error
        finally:
            self.ended.set()

    def _wait_for_stop(self) -> None:
        """Waits while the run stops by itself. Another signal ends the wait."""
        grace = self._stop_timeout_secs
        try:
            self.ended.wait(None if grace is None else grace + _GIVE_UP_SECS)
        except (KeyboardInterrupt, SystemExit):
            logger.warning("A second signal: training ends at once.")

    def _give_up(self, because: BaseException) -> None:
        if self.ended.is_set() and self._error is not None:
            because.add_note(f"Training had ended with an error as well: {self._error!r}")
        self.stop.end_at_once()
        if not self.ended.wait(_GIVE_UP_SECS):
            logger.warning("Training was given up, but its workers did not end within %g seconds.", _GIVE_UP_SECS)


class _Evaluations:
    """The evaluations of one `train_and_evaluate`, and which is due when.

    Args:
        estimator: The Estimator.
        spec: How to evaluate.
        max_steps: Where training ends, if that is known.
        clock: Seconds; for tests.

    Attributes:
        metrics: What the last one found; None before the first.
        exports: What the exporters returned after it.
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
        self._waits_for_room = False

    def make_if_due(self) -> None:
        """Evaluates the newest checkpoint, which was saved just now, unless the last evaluation was not long ago."""
        newest = self._newest()
        if newest is None:
            return
        if self._is_throttled():
            logger.info("Skip the current checkpoint eval due to throttle secs (%g secs).", self._spec.throttle_secs)
        else:
            self._make(newest)

    def warn_of_haste(self) -> None:
        """Says what it means, beside training, not to wait between evaluations."""
        if self._spec.throttle_secs == 0:
            logger.warning(
                "EvalSpec.throttle_secs is 0: evaluations follow each other as fast as checkpoints come, and take "
                "their share of the cluster beside training. Raise it if that is too much."
            )

    def look(self, runtime: RayRuntime) -> None:
        """Evaluates the newest checkpoint if it is new, and if it is time, and if the cluster has room for it."""
        if self._clock() - self._began_at < self._spec.start_delay_secs or self._is_throttled():
            return
        newest = self._newest()
        if newest is None or newest.step <= self._first_step or newest == self._evaluated:
            self._remind("There is no new checkpoint to evaluate in %s.", self._estimator.model_dir)
        elif runtime.has_room():
            self._make_unless_gone(newest)
        else:
            self._say_once_that_it_waits(newest)

    def make_last(self) -> None:
        """Evaluates the newest checkpoint, unless that was done."""
        newest = self._newest()
        if newest is None:
            raise RuntimeError(
                f"There was no new checkpoint after the training in {self._estimator.model_dir}, so nothing could be "
                "evaluated. Set RunConfig.save_checkpoints_steps or RunConfig.save_checkpoints_secs."
            )
        if newest != self._evaluated:
            self._make(newest)

    def _newest(self) -> Checkpoint | None:
        path = self._estimator.latest_checkpoint()
        return None if path is None else Checkpoint.at(path)

    def _is_throttled(self) -> bool:
        last = self._last_began_at
        return last is not None and self._clock() - last < self._spec.throttle_secs

    def _make(self, checkpoint: Checkpoint) -> None:
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

    def _make_unless_gone(self, checkpoint: Checkpoint) -> None:
        """Evaluates; if the checkpoint is deleted meanwhile, to make room for newer ones, one of those is next."""
        try:
            self._make(checkpoint)
        except Exception:
            if not self._is_gone(checkpoint):
                raise
            logger.warning(
                "The checkpoint %s was deleted before its evaluation had ended. Evaluations take longer than "
                "RunConfig.keep_checkpoint_max=%s checkpoints last.",
                checkpoint.path,
                self._estimator.config.keep_checkpoint_max,
            )

    def _is_gone(self, checkpoint: Checkpoint) -> bool:
        try:
            self._estimator._job_builder.store.find(checkpoint.path)
        except CheckpointNotFoundError:
            return True
        return False

    def _say_once_that_it_waits(self, checkpoint: Checkpoint) -> None:
        if self._waits_for_room:
            return
        self._waits_for_room = True
        needed = {"CPU": 1, **(self._estimator.config.task_resources or {})}
        logger.warning(
            "The evaluation of %s waits, since the cluster has no free %s beside the training group. Evaluations go on "
            "when there is, and the last one is made after training. Lower num_workers or resources_per_worker in "
            "RunConfig.scaling_config, or add nodes.",
            checkpoint.path,
            needed,
        )

    def _remind(self, message: str, *arguments: Any) -> None:
        if self._clock() - self._reminded_at > _REMIND_SECS:
            self._reminded_at = self._clock()
            logger.warning(message, *arguments)


def _check_secs(name: str, value: Any) -> None:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number of seconds, given: {value!r}.")
    if value < 0:
        raise ValueError(f"Must specify {name} >= 0, given: {value}")


def _checked_exporters(exporters: Any) -> tuple[Exporter, ...]:
    if exporters is None:
        return ()
    if isinstance(exporters, Exporter):
        exporters = [exporters]
    listed: Sequence[Any] = list(exporters) if isinstance(exporters, Iterable) else [exporters]
    if not all(isinstance(exporter, Exporter) for exporter in listed):
        raise TypeError(f"`exporters` must be an Exporter, an iterable of Exporter, or `None`, given: {exporters!r}.")
    names = [exporter.name for exporter in listed]
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"An Exporter must have a string name that is not empty. All exporter names: {names}.")
    if len(set(names)) < len(names):
        raise ValueError(f"`exporters` must have unique names. All exporter names: {names}.")
    return tuple(listed)
