"""When a training run saves, and how what TensorFlow writes becomes a published checkpoint."""

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
    """Saves a session. Every rank enters a save that holds collectives; the chief hands the files to its publisher.

    Args:
        publisher: Takes checkpoints to the store; None on ranks that are not chief.
        config: What to keep, and whether with the graph.
        scaffold: Holds the saver.
    """

    def __init__(self, publisher: Publisher | None, config: RunConfig, scaffold: v1.train.Scaffold) -> None:
        self._publisher = publisher
        self._retention = Retention(config.keep_checkpoint_max, config.keep_checkpoint_every_n_hours)
        self._keeps_graph = config.checkpoint_save_graph_def
        self._meta_graph: bytes | None = None
        self._scaffold = scaffold
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
        if self._publisher is not None and self._keeps_graph:
            graph_def = v1.get_default_graph().as_graph_def(add_shapes=True)
            self._publisher.store.write_text("graph.pbtxt", str(graph_def))

    def save(
        self, session: v1.Session, step: int, position: Position | None = None, places: Sequence[bytes] = ()
    ) -> None:
        """Copies `step` out of TensorFlow; it is published later. Call on every rank at the same step.

        Args:
            session: Has the variables.
            step: The global step.
            position: Where in its input training is.
            places: What to keep of each rank's input, if `position` is an `IteratorPosition`.
        """
        if self._publisher is not None:
            with contextlib.ExitStack() as staging:
                folder = staging.enter_context(self._publisher.store.staging_dir())
                prefix = self._run_saver(session, folder, step)
                if isinstance(position, IteratorPosition):
                    for rank, place in enumerate(places):
                        Path(prefix + position.suffix(rank)).write_bytes(place)
                self._publisher.submit(Saved(prefix, step, self._retention, staging.pop_all(), position))
        elif self._takes_all_ranks:
            with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
                self._run_saver(session, folder, step)

    def check(self) -> None:
        """Raises if an earlier save could not be published."""
        if self._publisher is not None:
            self._publisher.check()

    def wait(self, status: WorkerStatus) -> None:
        """Returns when every save is published."""
        if self._publisher is not None:
            self._publisher.wait(status.enter)

    def conclude(self, end: EndOfRun) -> None:
        """Notes how the run has ended. Every save must be published."""
        if self._publisher is not None:
            self._publisher.conclude(end)

    def _run_saver(self, session: v1.Session, folder: str, step: int) -> str:
        prefix = os.path.join(folder, "model.ckpt")
        writes_graph = self._keeps_graph and self._meta_graph is None
        saver = self._scaffold.saver
        if isinstance(saver, v1.train.Saver):
            # What it has saved before is not its own to delete: it may be on its way to the store.
            saver.set_last_checkpoints_with_time([])
        saved = str(saver.save(session, prefix, global_step=step, write_meta_graph=writes_graph))
        if self._keeps_graph:
            self._keep_meta_graph(f"{saved}.meta")
        return saved

    def _keep_meta_graph(self, path: str) -> None:
        """Puts the graph beside the variables. It is final: to write it out once for all checkpoints is enough."""
        if self._meta_graph is not None:
            Path(path).write_bytes(self._meta_graph)
        elif os.path.exists(path):
            self._meta_graph = Path(path).read_bytes()


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
        saver_module.build_saver(self._saver)
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
        places: Callable[[v1.Session, int, bool], list[bytes]] | None,
        every_secs: float | None,
        every_steps: int | None,
        listeners: Sequence[v1.train.CheckpointSaverListener],
        is_chief: bool,
        together: bool,
        status: WorkerStatus,
    ) -> None:
        self._writer = writer
        self._control = control
        self._places = places
        self._timer = v1.train.SecondOrStepTimer(every_secs=every_secs, every_steps=every_steps)
        self._by_clock = every_secs is not None and together
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
        due = self._by_clock and self._is_chief and self._timer.should_trigger_for_step(self._next_step)
        return v1.train.SessionRunArgs(None, {self._control.save: np.float32(1)}) if due else None

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        self._writer.check()
        decision, step = self._control.decision, self._control.step
        self._next_step = step + 1
        due = decision.save if self._by_clock else self._timer.should_trigger_for_step(step)
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
        """Saves; gives whether a listener asked to stop."""
        self._status.enter(f"saving step {step}")
        for listener in self._listeners:
            listener.before_save(session, step)
        places = [] if self._places is None else self._places(session, step, self._control.input_ended)
        self._writer.save(session, step, self._control.position, places)
        self._saved_step = step
        if self._listeners:
            # They may look at what was saved.
            self._writer.wait(self._status)
        return any([listener.after_save(session, step) for listener in self._listeners])
