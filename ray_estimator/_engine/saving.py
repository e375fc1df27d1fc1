"""When a training run saves, and how what TensorFlow writes becomes a published checkpoint."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow.compat.v1 as v1

from ray_estimator._checkpoints import CheckpointStore, Retention
from ray_estimator._engine import restoring
from ray_estimator._engine.collectives import chain, collectives_of
from ray_estimator._engine.control import Control
from ray_estimator._jobs import Pulse
from ray_estimator.config import RunConfig

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Saves a session and publishes the files. Every rank enters a save that holds collectives; the chief publishes."""

    def __init__(
        self, store: CheckpointStore, config: RunConfig, scaffold: v1.train.Scaffold, *, is_chief: bool
    ) -> None:
        self._store = store
        self._retention = Retention(config.keep_checkpoint_max, config.keep_checkpoint_every_n_hours)
        self._keeps_graph = config.checkpoint_save_graph_def
        self._scaffold = scaffold
        self._is_chief = is_chief
        self._takes_all_ranks = False

    def prepare(self, saver_def: Any) -> None:
        """Orders the collectives of a save. Call once, when the saver is built and before the graph is finalized.

        Args:
            saver_def: The saver's SaverDef, which says what to run, and what to keep; None if it has none.
        """
        if saver_def is None:
            # A saver of the user's own kind: nobody can say what it runs.
            self._takes_all_ranks = True
            return
        self._retention = Retention(saver_def.max_to_keep, saver_def.keep_checkpoint_every_n_hours)
        save_op = v1.get_default_graph().as_graph_element(saver_def.save_tensor_name).op
        self._takes_all_ranks = bool(chain([save_op]))

    def write_graph(self) -> None:
        """Publishes graph.pbtxt. Chief only."""
        if self._is_chief and self._keeps_graph:
            graph_def = v1.get_default_graph().as_graph_def(add_shapes=True)
            self._store.write_text("graph.pbtxt", str(graph_def))

    def save(self, session: v1.Session, step: int) -> None:
        """Saves `step`. Call on every rank at the same step."""
        if self._is_chief:
            with self._store.staging_dir() as folder:
                self._store.publish(self._run_saver(session, folder, step), step, self._retention)
            logger.info("Saved the checkpoint of step %d.", step)
        elif self._takes_all_ranks:
            with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
                self._run_saver(session, folder, step)

    def _run_saver(self, session: v1.Session, folder: str, step: int) -> str:
        prefix = os.path.join(folder, "model.ckpt")
        return str(self._scaffold.saver.save(session, prefix, global_step=step, write_meta_graph=self._keeps_graph))


class BuildSaver(v1.train.SessionRunHook):
    """Builds the saver when every hook before it has begun. Runs on every rank.

    Args:
        saver: The saver.
        writer: Who saves with it; None if it only restores, or saves in a hook of the user's.
        on_chief_alone: Whether a hook of the user's saves with it on the chief of several ranks, alone.
    """

    def __init__(self, saver: Any, writer: CheckpointWriter | None, *, on_chief_alone: bool) -> None:
        self._saver = saver
        self._writer = writer
        self._on_chief_alone = on_chief_alone

    def begin(self) -> None:
        restoring.build_saver(self._saver)
        saver_def = getattr(self._saver, "saver_def", None)
        if saver_def is not None and self._on_chief_alone:
            _require_no_collectives(saver_def)
        if self._writer is not None:
            self._writer.prepare(saver_def)


def _require_no_collectives(saver_def: Any) -> None:
    save_op = v1.get_default_graph().as_graph_element(saver_def.save_tensor_name).op
    collectives = collectives_of([save_op])
    if collectives:
        raise ValueError(
            f"A CheckpointSaverHook saves on the chief alone, but saving reads {collectives[0].name!r} from every "
            "worker (a variable with VariableSynchronization.ON_READ). Set RunConfig.save_checkpoints_steps or "
            "save_checkpoints_secs instead of the hook: then all workers take part."
        )


class SaveCheckpoints(v1.train.SessionRunHook):
    """Saves at the start, at intervals, and at the end if the last step was not saved.

    Runs on every rank. Step intervals are the same everywhere; time goes by the chief's clock, which the control
    vector carries. A loss that is not a number is never published.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        control: Control,
        *,
        every_secs: float | None,
        every_steps: int | None,
        listeners: Sequence[v1.train.CheckpointSaverListener],
        is_chief: bool,
        together: bool,
        pulse: Pulse,
    ) -> None:
        self._writer = writer
        self._control = control
        self._timer = v1.train.SecondOrStepTimer(every_secs=every_secs, every_steps=every_steps)
        self._by_clock = every_secs is not None and together
        self._listeners = listeners if is_chief else ()
        self._is_chief = is_chief
        self._pulse = pulse
        self._next_step = 0
        self._saved_step: int | None = None

    def begin(self) -> None:
        for listener in self._listeners:
            listener.begin()

    def after_create_session(self, session: v1.Session, coord: Any) -> None:
        self._writer.write_graph()
        step = int(session.run(self._control.global_step))
        self._next_step = step + 1
        self._save(session, step)
        self._timer.update_last_triggered_step(step)

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs | None:
        due = self._by_clock and self._is_chief and self._timer.should_trigger_for_step(self._next_step)
        return v1.train.SessionRunArgs(None, {self._control.save: np.float32(1)}) if due else None

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        verdict, step = self._control.verdict, self._control.step
        self._next_step = step + 1
        due = verdict.save if self._by_clock else self._timer.should_trigger_for_step(step)
        if due and not verdict.loss_is_nan:
            self._timer.update_last_triggered_step(step)
            if self._save(run_context.session, step):
                run_context.request_stop()

    def end(self, session: v1.Session) -> None:
        step = int(session.run(self._control.global_step))
        if step != self._saved_step and not self._control.verdict.loss_is_nan:
            self._save(session, step)
        for listener in self._listeners:
            listener.end(session, step)

    def _save(self, session: v1.Session, step: int) -> bool:
        """Saves; gives whether a listener asked to stop."""
        self._pulse.enter(f"saving step {step}")
        for listener in self._listeners:
            listener.before_save(session, step)
        self._writer.save(session, step)
        self._saved_step = step
        return any([listener.after_save(session, step) for listener in self._listeners])
