"""Hooks that tell a test, by way of files in a shared folder, what happened on each worker."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def rank() -> int:
    """This worker's rank, from the strategy's own variable; 0 when there is no group."""
    return int(json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"])


def note(folder: str, name: str, value: Any) -> None:
    """Appends one JSON line to a file of this rank."""
    with open(Path(folder) / f"{name}-{rank()}.jsonl", "a") as file:
        file.write(json.dumps(value) + "\n")


def notes(folder: Any, name: str) -> dict[int, list[Any]]:
    """What each rank noted."""
    return {
        int(path.stem.rpartition("-")[2]): [json.loads(line) for line in path.read_text().splitlines()]
        for path in Path(folder).glob(f"{name}-*.jsonl")
    }


class NoteLosses(v1.train.SessionRunHook):
    """Notes the loss that the engine reports at each step, and the weights' digest at the end."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def before_run(self, run_context: Any) -> Any:
        return v1.train.SessionRunArgs(("control/loss:0", "control/step_after:0"))

    def after_run(self, run_context: Any, run_values: Any) -> None:
        loss, step = run_values.results
        note(self._folder, "loss", [int(step), float(loss)])

    def end(self, session: Any) -> None:
        digest = hashlib.sha256()
        for variable in sorted(v1.trainable_variables(), key=lambda variable: variable.name):
            local = getattr(variable, "values", [variable])[0]
            digest.update(session.run(local).tobytes())
        note(self._folder, "weights", digest.hexdigest())


class NoteOrder(v1.train.SessionRunHook):
    """Notes how many collectives a step has, and whether each follows the one before."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._noted = False

    def before_run(self, run_context: Any) -> None:
        if self._noted:
            return
        from ray_estimator._engine.distribution.collectives import collectives_of
        from ray_estimator._engine.graph.traversal import ancestors

        ordered = collectives_of(
            [run_context.original_args.fetches, v1.get_default_graph().get_operation_by_name("control/loss")]
        )
        follows = [ordered[i] in ancestors([ordered[i + 1]]) for i in range(len(ordered) - 1)]
        sizes = [op.inputs[0].shape.num_elements() for op in ordered if "Reduce" in op.type]
        note(self._folder, "order", {"types": [op.type for op in ordered], "follows": follows, "reduced": sizes})
        self._noted = True


class AtStep(v1.train.SessionRunHook):
    """Does what `what` begins with, on one rank, after the step that ends at `step`: in the first attempt only."""

    def __init__(self, folder: str, what: str, step: int, on_rank: int) -> None:
        self._folder = folder
        self._what = what
        self._step = step
        self._on_rank = on_rank

    def after_run(self, run_context: Any, run_values: Any) -> None:
        step = int(run_context.session.run(v1.train.get_global_step()))
        note(self._folder, "steps", step)
        mark = Path(self._folder) / f"{self._what}-done"
        if step != self._step or rank() != self._on_rank or mark.exists():
            return
        mark.touch()
        act = {"kill": _kill, "freeze": _freeze, "stop": run_context.request_stop, "raise": _raise}
        act[self._what.partition(" ")[0]]()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _raise() -> None:
    raise LookupError("the hook's own error")


class NoteMasks(v1.train.SessionRunHook):
    """Notes where dropout let values through, in the first steps."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._left = 3

    def before_run(self, run_context: Any) -> Any:
        kept = [op for op in v1.get_default_graph().get_operations() if op.name.split("/")[-1] == "kept"]
        return v1.train.SessionRunArgs(kept[0].outputs[0]) if kept and self._left else None

    def after_run(self, run_context: Any, run_values: Any) -> None:
        if run_values.results is not None:
            note(self._folder, "masks", np.packbits(run_values.results).tolist())
            self._left -= 1
