"""The hooks of a training run, in tf.estimator's order: our only place that asks who is chief."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow.compat.v1 as v1

from ray_estimator._engine.checkpointing.publisher import Publisher
from ray_estimator._engine.checkpointing.saver import saver_of
from ray_estimator._engine.distribution.strategy import Distribution
from ray_estimator._engine.hooks.control import Control, ReadControl, StopTogether
from ray_estimator._engine.hooks.progress import ReportProgress
from ray_estimator._engine.hooks.saving import BuildSaver, CheckpointWriter, SaveCheckpoints
from ray_estimator._engine.hooks.stopping import StopOnPredicate, StopWhenAsked
from ray_estimator._engine.hooks.summaries import SummarizeTogether
from ray_estimator._engine.hooks.tracking import LogToTracker
from ray_estimator._engine.hooks.user_hooks import made, made_listeners, without_waiters
from ray_estimator._engine.input.feed import Feed
from ray_estimator._engine.model import Model, scaffold_of
from ray_estimator._engine.tf_private import sessions
from ray_estimator._jobs.jobs import TrainJob, UserCode
from ray_estimator._jobs.last_step import earliest, own_target
from ray_estimator._jobs.worker import Worker

_NEVER_HOURS = 1e6

logger = logging.getLogger(__name__)


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
        ReportProgress(worker.status, control, feed.features, distribution.num_replicas),
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
        status=worker.status,
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
    sessions.attach_listeners(savers[0], listeners)


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
