"""The hooks of a training run, in tf.estimator's order: our only place that asks who is chief."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine import internals
from ray_estimator._engine.collectives import chain_after
from ray_estimator._engine.control import Control, ReadControl, StopTogether
from ray_estimator._engine.distribution import Distribution
from ray_estimator._engine.feed import Feed, batch_dimension
from ray_estimator._engine.model import Model, scaffold_of
from ray_estimator._engine.restoring import saver_of
from ray_estimator._engine.saving import BuildSaver, CheckpointWriter, SaveCheckpoints
from ray_estimator._engine.stopping import StopOnPredicate, StopWhenAsked
from ray_estimator._engine.tracking import LogToTracker
from ray_estimator._jobs import Pulse, TrainJob, UserCode, Worker
from ray_estimator._publishing import Publisher
from ray_estimator._targets import earliest, own_target

_REPORT_SECS = 0.2
_NEVER_HOURS = 1e6

logger = logging.getLogger(__name__)


def made(hooks: Iterable[Any]) -> list[v1.train.SessionRunHook]:
    """User hooks, factories called: here, in the graph, after model_fn."""
    return [checked(hook if isinstance(hook, v1.train.SessionRunHook) else hook()) for hook in hooks]


def checked(hook: Any) -> v1.train.SessionRunHook:
    """The hook, or a TypeError that says what is expected."""
    if not isinstance(hook, v1.train.SessionRunHook):
        raise TypeError(f"Hooks must be a SessionRunHook, given: {hook!r}")
    return hook


def without_waiters(
    hooks: Iterable[v1.train.SessionRunHook], step: int, *, together: bool = False
) -> list[v1.train.SessionRunHook]:
    """The hooks but for each `GlobalStepWaiterHook` that waits for a later step than `step`: nobody else makes it.

    In a group, where such hooks once spread the starts of workers, all start and step together: it is left out.

    Raises:
        ValueError: It waits in a process that is alone.
    """
    waiters = {hook: awaited for hook in hooks if (awaited := internals.awaited_step(hook)) > step}
    for awaited in waiters.values():
        if not together:
            raise ValueError(
                f"GlobalStepWaiterHook waits for step {awaited}, but this run begins at step {step} and nobody else "
                "makes steps: it would wait for ever. Leave it out."
            )
        logger.warning("GlobalStepWaiterHook(%d) is left out: the workers of a group make all steps together.", awaited)
    return [hook for hook in hooks if hook not in waiters]


def made_listeners(listeners: Iterable[Any]) -> list[v1.train.CheckpointSaverListener]:
    """Saving listeners, factories called."""
    kind = v1.train.CheckpointSaverListener
    result = [listener if isinstance(listener, kind) else listener() for listener in dict.fromkeys(listeners)]
    for listener in result:
        if not isinstance(listener, kind):
            raise TypeError(f"saving_listeners must be a list of CheckpointSaverListener, given: {listener!r}")
    return result


@dataclass(frozen=True)
class TrainingHooks:
    """The hooks of one rank.

    Attributes:
        in_order: As the session calls them.
        scaffold: What to make the session with.
        last_step: Where every rank stops by itself; None if only the input or a hook's request ends the run.
    """

    in_order: list[v1.train.SessionRunHook]
    scaffold: v1.train.Scaffold
    last_step: int | None


def training_hooks(
    job: TrainJob,
    code: UserCode,
    worker: Worker,
    publisher: Publisher | None,
    model: Model,
    feed: Feed,
    control: Control,
    distribution: Distribution,
    events_dir: str,
) -> TrainingHooks:
    """Every hook of this rank, in order."""
    scaffold = scaffold_of(model.spec)
    config, is_chief, together = job.config, worker.rank == 0, distribution.num_replicas > 1
    (users, of_users), (specs, of_spec), (chiefs, of_chiefs) = (
        own_target(without_waiters(hooks, job.first_step, together=together), job.first_step)
        for hooks in (made(code.hooks), model.spec.training_hooks, model.spec.training_chief_hooks)
    )
    last_step = earliest(job.last_step, of_users, of_spec, of_chiefs)
    saving, build_saver = _saving(job, code, worker, publisher, scaffold, feed, control, [*users, *specs, *chiefs])
    if not is_chief:
        # What a user's own saver hook writes, it writes once; who decides or speaks for all ranks, does so once.
        kinds = (v1.train.CheckpointSaverHook, StopOnPredicate, LogToTracker)
        users, specs = ([hook for hook in hooks if not isinstance(hook, kinds)] for hooks in (users, specs))
    hooks = [
        ReadControl(control),
        *saving,
        *(chiefs if is_chief else []),
        *_step_counter(config.log_step_count_steps, events_dir, is_chief),
        *_summaries(config.save_summary_steps, events_dir, scaffold, is_chief),
        *feed.hooks,
        *users,
        *([v1.train.StopAtStepHook(last_step=last_step)] if last_step is not None else []),
        v1.train.NanTensorHook(control.loss),
        *_loss_log(config.log_step_count_steps, control, is_chief),
        *specs,
        build_saver,
        *_summaries_together(config.save_summary_steps, scaffold, control, is_chief, together),
        KeepPulse(worker.pulse, control, feed.features, distribution.num_replicas),
        *([StopWhenAsked(worker, control, last_step)] if is_chief else []),
        *([StopTogether(control, last_step)] if together else []),
    ]
    return TrainingHooks(hooks, scaffold, last_step)


def _saving(
    job: TrainJob,
    code: UserCode,
    worker: Worker,
    publisher: Publisher | None,
    scaffold: v1.train.Scaffold,
    feed: Feed,
    control: Control,
    others: Sequence[v1.train.SessionRunHook],
) -> tuple[list[v1.train.SessionRunHook], BuildSaver]:
    """The hook that saves, unless the user brings one or turned saving off; and the hook that builds the saver."""
    config, is_chief, together = job.config, worker.rank == 0, len(worker.addresses) > 1
    saver = saver_of(
        scaffold,
        max_to_keep=config.keep_checkpoint_max,
        keep_checkpoint_every_n_hours=config.keep_checkpoint_every_n_hours or _NEVER_HOURS,
    )
    listeners = made_listeners(code.saving_listeners)
    own_savers = [hook for hook in others if _is_saver(hook)]
    wants_saving = config.save_checkpoints_secs or config.save_checkpoints_steps
    if own_savers or not wants_saving:
        if listeners:
            _attach(listeners, own_savers)
        return [], BuildSaver(saver, None, on_chief_alone=together and bool(own_savers))
    writer = CheckpointWriter(publisher, config, scaffold)
    hook = SaveCheckpoints(
        writer,
        control,
        places=feed.save_places,
        every_secs=config.save_checkpoints_secs or None,
        every_steps=config.save_checkpoints_steps or None,
        listeners=listeners,
        is_chief=is_chief,
        together=together,
        pulse=worker.pulse,
    )
    return [hook], BuildSaver(saver, writer, on_chief_alone=False)


def _is_saver(hook: Any) -> bool:
    return isinstance(hook, v1.train.CheckpointSaverHook)


def _attach(listeners: Sequence[Any], savers: Sequence[Any]) -> None:
    if not savers:
        raise ValueError(
            "There should be a CheckpointSaverHook to use saving_listeners. Please set one of the "
            "RunConfig.save_checkpoints_steps or RunConfig.save_checkpoints_secs."
        )
    attached = savers[0]._listeners
    attached.extend(listener for listener in listeners if listener not in attached)


def _step_counter(every_steps: int | None, events_dir: str, is_chief: bool) -> list[v1.train.SessionRunHook]:
    if not every_steps or not is_chief:
        return []
    return [v1.train.StepCounterHook(every_n_steps=every_steps, output_dir=events_dir)]


def _summaries(
    every_steps: int | None, events_dir: str, scaffold: v1.train.Scaffold, is_chief: bool
) -> list[v1.train.SessionRunHook]:
    if not every_steps or not is_chief:
        return []
    return [v1.train.SummarySaverHook(save_steps=every_steps, output_dir=events_dir, scaffold=scaffold)]


def _summaries_together(
    every_steps: int | None, scaffold: v1.train.Scaffold, control: Control, is_chief: bool, together: bool
) -> list[v1.train.SessionRunHook]:
    return [SummarizeTogether(every_steps, scaffold, control, is_chief)] if every_steps and together else []


def _loss_log(every_steps: int | None, control: Control, is_chief: bool) -> list[v1.train.SessionRunHook]:
    if not every_steps or not is_chief:
        return []
    return [v1.train.LoggingTensorHook({"loss": control.loss, "step": control.global_step}, every_n_iter=every_steps)]


class SummarizeTogether(v1.train.SessionRunHook):
    """Lets every rank run the summaries that are collectives, at the steps at which the chief's hook writes them.

    A summary of a variable that is reduced when read is one. It must begin after every hook that may add a summary.
    """

    def __init__(self, every_steps: int, scaffold: v1.train.Scaffold, control: Control, is_chief: bool) -> None:
        self._timer = v1.train.SecondOrStepTimer(every_steps=every_steps)
        self._scaffold = scaffold
        self._control = control
        self._is_chief = is_chief
        self._takes_part = False
        self._next_step: int | None = None

    def begin(self) -> None:
        self._summary_op = self._scaffold.summary_op
        if self._summary_op is None:
            # What the Scaffold will find when the session is made.
            self._summary_op = v1.train.Scaffold.get_or_default(
                "summary_op", v1.GraphKeys.SUMMARY_OP, v1.summary.merge_all
            )
        if self._summary_op is not None:
            added = chain_after(self._control.collectives, [self._summary_op.op])
            self._takes_part = bool(added) and not self._is_chief

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs | None:
        if not self._takes_part:
            return None
        self._due = self._next_step is None or self._timer.should_trigger_for_step(self._next_step)
        fetches = {"global_step": self._control.global_step}
        return v1.train.SessionRunArgs({**fetches, "summary": self._summary_op} if self._due else fetches)

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        if not self._takes_part:
            return
        step = int(run_values.results["global_step"])
        if self._next_step is None or self._due:
            self._timer.update_last_triggered_step(step)
        self._next_step = step + 1


class KeepPulse(v1.train.SessionRunHook):
    """Says where this rank is, for the progress display and for the watch on steps that do not end."""

    def __init__(self, pulse: Pulse, control: Control, features: Any, num_replicas: int) -> None:
        self._pulse = pulse
        self._control = control
        # An int, a scalar tensor, or None where the features have no batch dimension.
        self._rows = batch_dimension(features)
        self._num_replicas = num_replicas
        self._rows_of_a_step: float | None = None
        self._began: _Mark | None = None
        self._measured: _Mark | None = None

    def after_create_session(self, session: v1.Session, coord: Any) -> None:
        self._pulse.step = int(session.run(v1.train.get_global_step()))
        self._measured = None

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs | None:
        self._pulse.enter("in a step")
        self._due = self._measured is None or time.monotonic() - self._measured.at >= _REPORT_SECS
        return v1.train.SessionRunArgs(self._rows) if self._due and isinstance(self._rows, tf.Tensor) else None

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        self._pulse.enter("between steps (hooks, input)")
        self._pulse.step = self._control.step
        if not self._due:
            return
        rows = run_values.results if isinstance(self._rows, tf.Tensor) else self._rows
        if rows is not None:
            self._rows_of_a_step = float(rows) * self._num_replicas
        self._pulse.loss = self._control.verdict.loss
        self._measure()

    def end(self, session: v1.Session) -> None:
        """Leaves the rates of the whole run."""
        self._take_rates(self._began, self._mark())

    def _measure(self) -> None:
        """Takes the rates since the last report. The first step, which warms TensorFlow up, does not count."""
        mark = self._mark()
        if self._measured is None:
            self._began = mark
        self._take_rates(self._measured, mark)
        self._measured = mark

    def _mark(self) -> _Mark:
        return _Mark(time.monotonic(), self._pulse.step, self._control.waited_secs)

    def _take_rates(self, since: _Mark | None, now: _Mark) -> None:
        if since is None or now.step <= since.step:
            return
        self._pulse.step_secs = (now.at - since.at) / (now.step - since.step)
        waited_secs = now.waited_secs - since.waited_secs
        self._pulse.input_wait = None if math.isnan(waited_secs) else waited_secs / (now.at - since.at)
        if self._rows_of_a_step is not None:
            self._pulse.examples_per_sec = self._rows_of_a_step / self._pulse.step_secs


class _Mark(NamedTuple):
    at: float
    step: int
    waited_secs: float
