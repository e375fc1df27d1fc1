"""When a training run saves checkpoints, and how they are handed to the publisher."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow.compat.v1 as v1

from ray_estimator._checkpoints.store import Retention
from ray_estimator._data.position import EndOfRun, IteratorPosition, Position
from ray_estimator._engine.checkpointing import saver as saver_module
from ray_estimator._engine.checkpointing.publisher import Publisher, Saved
from ray_estimator._engine.distribution.collectives import chain, collectives_of
from ray_estimator._engine.hooks.control import Control
from ray_estimator._jobs.worker import WorkerStatus
from ray_estimator.config import RunConfig


class CheckpointWriter:
    """Saves a session. If a save holds collectives, every rank runs it; only the chief publishes the files.

    Args:
        publisher: Publishes checkpoints; None on ranks other than the chief.
        config: Retention, and whether to save the graph.
        scaffold: Holds the saver.
    """

    def __init__(self, publisher: Publisher | None, config: RunConfig, scaffold: v1.train.Scaffold) -> None:
        self._publisher = publisher
        self._retention = Retention(config.keep_checkpoint_max, config.keep_checkpoint_every_n_hours)
        self._saves_graph = config.checkpoint_save_graph_def
        self._meta_graph: bytes | None = None
        self._scaffold = scaffold
        self._runs_on_all_ranks = False

    def prepare(self, saver_def: Any) -> None:
        """Order the collectives of a save. Call once, when the saver is built and before the graph is finalized.

        Args:
            saver_def: The saver's SaverDef, with its operations and retention; None if it has none.
        """
        if saver_def is None:
            # The user's own class of saver: its operations are unknown.
            self._runs_on_all_ranks = True
            return
        self._retention = Retention(saver_def.max_to_keep, saver_def.keep_checkpoint_every_n_hours)
        save_op = v1.get_default_graph().as_graph_element(saver_def.save_tensor_name).op
        self._runs_on_all_ranks = bool(chain([save_op]))

    def write_graph(self) -> None:
        """Publish graph.pbtxt. Does nothing on ranks other than the chief."""
        if self._publisher is not None and self._saves_graph:
            graph_def = v1.get_default_graph().as_graph_def(add_shapes=True)
            self._publisher.store.write_text("graph.pbtxt", str(graph_def))

    def save(
        self, session: v1.Session, step: int, position: Position | None = None, iterator_states: Sequence[bytes] = ()
    ) -> None:
        """Save `step` locally and schedule it for publishing. Call on every rank at the same step.

        Args:
            session: The session with the variables.
            step: The global step.
            position: Position in the input; None if unknown.
            iterator_states: Saved iterator of each rank, if `position` is an `IteratorPosition`.
        """
        if self._publisher is not None:
            with contextlib.ExitStack() as staging:
                folder = staging.enter_context(self._publisher.store.staging_dir())
                prefix = self._run_saver(session, folder, step)
                if isinstance(position, IteratorPosition):
                    for rank, state in enumerate(iterator_states):
                        Path(prefix + position.suffix(rank)).write_bytes(state)
                self._publisher.submit(Saved(prefix, step, self._retention, staging.pop_all(), position))
        elif self._runs_on_all_ranks:
            with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
                self._run_saver(session, folder, step)

    def check(self) -> None:
        """Raise the store's error if an earlier save could not be published."""
        if self._publisher is not None:
            self._publisher.check()

    def wait(self, status: WorkerStatus) -> None:
        """Return when every save is published."""
        if self._publisher is not None:
            self._publisher.wait(status.enter)

    def conclude(self, end: EndOfRun) -> None:
        """Record how the run ended. Every save must be published."""
        if self._publisher is not None:
            self._publisher.conclude(end)

    def _run_saver(self, session: v1.Session, folder: str, step: int) -> str:
        prefix = os.path.join(folder, "model.ckpt")
        writes_graph = self._saves_graph and self._meta_graph is None
        saver = self._scaffold.saver
        if isinstance(saver, v1.train.Saver):
            # Otherwise the saver would delete earlier checkpoints, which may still be uploading.
            saver.set_last_checkpoints_with_time([])
        saved = str(saver.save(session, prefix, global_step=step, write_meta_graph=writes_graph))
        if self._saves_graph:
            self._reuse_meta_graph(f"{saved}.meta")
        return saved

    def _reuse_meta_graph(self, path: str) -> None:
        """Write the MetaGraph of the first save for later ones too: the graph is final, and to serialize it is slow."""
        if self._meta_graph is not None:
            Path(path).write_bytes(self._meta_graph)
        elif os.path.exists(path):
            self._meta_graph = Path(path).read_bytes()


class BuildSaver(v1.train.SessionRunHook):
    """Builds the saver after the `begin` of every earlier hook. Runs on every rank.

    Args:
        saver: The saver.
        writer: The writer that saves with it; None if it only restores, or a hook of the user saves with it.
        chief_only: Whether a hook of the user saves with it on the chief only, in a group of several ranks.
    """

    def __init__(self, saver: Any, writer: CheckpointWriter | None, *, chief_only: bool) -> None:
        self._saver = saver
        self._writer = writer
        self._chief_only = chief_only

    def begin(self) -> None:
        saver_module.build_saver(self._saver)
        saver_def = getattr(self._saver, "saver_def", None)
        if saver_def is not None and self._chief_only:
            _require_no_collectives(saver_def)
        if self._writer is not None:
            self._writer.prepare(saver_def)


def _require_no_collectives(saver_def: Any) -> None:
    save_op = v1.get_default_graph().as_graph_element(saver_def.save_tensor_name).op
    collectives = collectives_of([save_op])
    if collectives:
        raise ValueError(
            f"A CheckpointSaverHook saves on the chief only, but saving reads {collectives[0].name!r} from every "
            "worker (a variable with VariableSynchronization.ON_READ). Replace the hook by "
            "RunConfig.save_checkpoints_steps or save_checkpoints_secs, which save on all workers."
        )


class SaveCheckpoints(v1.train.SessionRunHook):
    """Saves at the start, at intervals, and at the end if the last step was not saved.

    Runs on every rank. Every rank counts steps itself; for intervals in seconds, the chief's clock decides and the
    control vector tells the others. A step whose loss is NaN is never saved.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        control: Control,
        *,
        save_iterators: Callable[[v1.Session, int, bool], list[bytes]] | None,
        every_secs: float | None,
        every_steps: int | None,
        listeners: Sequence[v1.train.CheckpointSaverListener],
        is_chief: bool,
        in_group: bool,
        status: WorkerStatus,
    ) -> None:
        self._writer = writer
        self._control = control
        self._save_iterators = save_iterators
        self._timer = v1.train.SecondOrStepTimer(every_secs=every_secs, every_steps=every_steps)
        self._chief_decides = every_secs is not None and in_group
        self._listeners = listeners if is_chief else ()
        self._is_chief = is_chief
        self._status = status
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
        due = self._chief_decides and self._is_chief and self._timer.should_trigger_for_step(self._next_step)
        return v1.train.SessionRunArgs(None, {self._control.save: np.float32(1)}) if due else None

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        self._writer.check()
        decision, step = self._control.decision, self._control.step
        self._next_step = step + 1
        due = decision.save if self._chief_decides else self._timer.should_trigger_for_step(step)
        if due and not decision.loss_is_nan:
            self._timer.update_last_triggered_step(step)
            if self._save(run_context.session, step):
                run_context.request_stop()

    def end(self, session: v1.Session) -> None:
        step = int(session.run(self._control.global_step))
        if step != self._saved_step and not self._control.decision.loss_is_nan:
            self._save(session, step)
        self._writer.wait(self._status)
        position = self._control.position
        if position is not None and not self._control.cut_short:
            self._writer.conclude(EndOfRun(position.run, self._control.input_ended))
        for listener in self._listeners:
            listener.end(session, step)

    def _save(self, session: v1.Session, step: int) -> bool:
        """Save the session, and return whether a listener asked to stop."""
        self._status.enter(f"saving step {step}")
        for listener in self._listeners:
            listener.before_save(session, step)
        states = [] if self._save_iterators is None else self._save_iterators(session, step, self._control.input_ended)
        self._writer.save(session, step, self._control.position, states)
        self._saved_step = step
        if self._listeners:
            # Listeners may read the published checkpoint.
            self._writer.wait(self._status)
        return any([listener.after_save(session, step) for listener in self._listeners])
