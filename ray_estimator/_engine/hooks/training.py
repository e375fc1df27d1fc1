"""Assemble the hooks of a training run, in tf.estimator's order, for the chief and for the other ranks."""

from __future__ import annotations

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
from ray_estimator._engine.hooks.summaries import RunCollectiveSummaries
from ray_estimator._engine.hooks.tracking import LogToTracker
from ray_estimator._engine.hooks.user_hooks import create_hooks, create_listeners, without_step_waiters
from ray_estimator._engine.input.feed import Feed
from ray_estimator._engine.model import Model, scaffold_of
from ray_estimator._jobs.jobs import TrainJob, UserCode
from ray_estimator._jobs.last_step import earliest, split_stop_hooks
from ray_estimator._jobs.worker import Worker
from ray_estimator._tf_private import sessions

_NEVER_HOURS = 1e6


@dataclass(frozen=True)
class TrainingHooks:
    """The hooks of one rank.

    Attributes:
        in_order: The hooks, in the order in which the session calls them.
        scaffold: The Scaffold of the session.
        last_step: The step after which every rank stops; None if only the input or a hook's request ends the run.
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
    """Return every hook of this rank, in order."""
    scaffold = scaffold_of(model.spec)
    config, is_chief, in_group = job.config, worker.rank == 0, distribution.num_replicas > 1
    (user_hooks, user_target), (spec_hooks, spec_target), (chief_hooks, chief_target) = (
        split_stop_hooks(without_step_waiters(hooks, job.first_step, in_group=in_group), job.first_step)
        for hooks in (create_hooks(code.hooks), model.spec.training_hooks, model.spec.training_chief_hooks)
    )
    last_step = earliest(job.last_step, user_target, spec_target, chief_target)
    others = [*user_hooks, *spec_hooks, *chief_hooks]
    saving, build_saver = _saving(job, code, worker, publisher, scaffold, feed, control, others)
    if not is_chief:
        user_hooks, spec_hooks, chief_hooks = _not_chief_only(user_hooks), _not_chief_only(spec_hooks), []
    hooks = [
        ReadControl(control),
        *saving,
        *chief_hooks,
        *_step_counter(config.log_step_count_steps, events_dir, is_chief),
        *_summaries(config.save_summary_steps, events_dir, scaffold, is_chief),
        *feed.hooks,
        *user_hooks,
        *([v1.train.StopAtStepHook(last_step=last_step)] if last_step is not None else []),
        v1.train.NanTensorHook(control.loss),
        *_loss_log(config.log_step_count_steps, control, is_chief),
        *spec_hooks,
        build_saver,
        *_collective_summaries(config.save_summary_steps, scaffold, control, is_chief, in_group),
        ReportProgress(worker.status, control, feed.features, distribution.num_replicas),
        *([StopWhenAsked(worker, control, last_step)] if is_chief else []),
        *([StopTogether(control, last_step)] if in_group else []),
    ]
    return TrainingHooks(hooks, scaffold, last_step)


def _not_chief_only(hooks: Sequence[v1.train.SessionRunHook]) -> list[v1.train.SessionRunHook]:
    """Return the hooks without those that write, decide or log for all ranks."""
    chief_only = (v1.train.CheckpointSaverHook, StopOnPredicate, LogToTracker)
    return [hook for hook in hooks if not isinstance(hook, chief_only)]


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
    """Return the hook that saves and the one that builds the saver.

    There is no hook that saves if the user passes one, or has turned saving off.
    """
    config, is_chief, in_group = job.config, worker.rank == 0, len(worker.addresses) > 1
    saver = saver_of(
        scaffold,
        max_to_keep=config.keep_checkpoint_max,
        keep_checkpoint_every_n_hours=config.keep_checkpoint_every_n_hours or _NEVER_HOURS,
    )
    listeners = create_listeners(code.saving_listeners)
    own_savers = [hook for hook in others if _is_saver(hook)]
    wants_saving = config.save_checkpoints_secs or config.save_checkpoints_steps
    if own_savers or not wants_saving:
        if listeners:
            _attach_listeners(listeners, own_savers)
        return [], BuildSaver(saver, None, chief_only=in_group and bool(own_savers))
    writer = CheckpointWriter(publisher, config, scaffold)
    hook = SaveCheckpoints(
        writer,
        control,
        save_iterators=feed.save_iterators,
        every_secs=config.save_checkpoints_secs or None,
        every_steps=config.save_checkpoints_steps or None,
        listeners=listeners,
        is_chief=is_chief,
        in_group=in_group,
        status=worker.status,
    )
    return [hook], BuildSaver(saver, writer, chief_only=False)


def _is_saver(hook: Any) -> bool:
    return isinstance(hook, v1.train.CheckpointSaverHook)


def _attach_listeners(listeners: Sequence[Any], savers: Sequence[Any]) -> None:
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


def _collective_summaries(
    every_steps: int | None, scaffold: v1.train.Scaffold, control: Control, is_chief: bool, in_group: bool
) -> list[v1.train.SessionRunHook]:
    return [RunCollectiveSummaries(every_steps, scaffold, control, is_chief)] if every_steps and in_group else []


def _loss_log(every_steps: int | None, control: Control, is_chief: bool) -> list[v1.train.SessionRunHook]:
    if not every_steps or not is_chief:
        return []
    return [v1.train.LoggingTensorHook({"loss": control.loss, "step": control.global_step}, every_n_iter=every_steps)]
