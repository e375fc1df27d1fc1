"""Hooks and listeners that note what happens to them, and readers of what a run leaves in model_dir."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator import EstimatorSpec

Calls = list[tuple[str, str]]

HOOK_METHODS = ("begin", "after_create_session", "before_run", "after_run", "end")


class RecordingHook(v1.train.SessionRunHook):
    """Adds (its name, the method) to a list of the caller's whenever it is called."""

    def __init__(self, name: str, calls: Calls) -> None:
        self._name = name
        self._calls = calls

    def begin(self) -> None:
        self._calls.append((self._name, "begin"))

    def after_create_session(self, session: Any, coord: Any) -> None:
        self._calls.append((self._name, "after_create_session"))

    def before_run(self, run_context: Any) -> None:
        self._calls.append((self._name, "before_run"))

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self._calls.append((self._name, "after_run"))

    def end(self, session: Any) -> None:
        self._calls.append((self._name, "end"))


EACH_SAVE_ARRIVES = (v1.train.CheckpointSaverListener,)
"""Saving listeners: with any, a save is published before training goes on; unhelped a newer one may overtake it."""


class RecordingListener(v1.train.CheckpointSaverListener):
    """Notes (method, global step) of each call; asks to stop after the save of `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[str, int | None]] = []
        self._stop_at = stop_at

    def begin(self) -> None:
        self.calls.append(("begin", None))

    def before_save(self, session: Any, global_step_value: Any) -> None:
        self.calls.append(("before_save", int(global_step_value)))

    def after_save(self, session: Any, global_step_value: Any) -> bool:
        self.calls.append(("after_save", int(global_step_value)))
        return int(global_step_value) == self._stop_at

    def end(self, session: Any, global_step_value: Any) -> None:
        self.calls.append(("end", int(global_step_value)))


def spy_on(monkeypatch: pytest.MonkeyPatch, kind: type, calls: Calls) -> None:
    """Notes every call of a hook class's methods, which go on doing what they do."""
    for method in HOOK_METHODS:
        monkeypatch.setattr(kind, method, _noting(kind.__name__, method, getattr(kind, method), calls))


def _noting(name: str, method: str, original: Callable[..., Any], calls: Calls) -> Callable[..., Any]:
    def noting(*args: Any) -> Any:
        calls.append((name, method))
        return original(*args)

    return noting


def with_spec(model_fn: Callable[..., EstimatorSpec], **fields: Callable[[], Any]) -> Callable[..., EstimatorSpec]:
    """The model, with fields of its spec replaced by what the given functions make in the graph."""

    def changed_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        spec = model_fn(features=features, labels=labels, mode=mode, params=params)
        return spec._replace(**{name: make() for name, make in fields.items()})

    return changed_model_fn


def saved_steps(model_dir: str | os.PathLike[str]) -> list[int]:
    """Global steps of the checkpoints whose files are there, published or not."""
    names = [re.fullmatch(r"model\.ckpt-(\d+)\.index", name) for name in os.listdir(model_dir)]
    return sorted(int(name[1]) for name in names if name)


def published_steps(model_dir: str | os.PathLike[str]) -> list[int]:
    """Global steps of the checkpoints that the state file names, as TensorFlow reads it."""
    state = tf.train.get_checkpoint_state(os.fspath(model_dir))
    return [] if state is None else [int(path.rpartition("-")[2]) for path in state.all_model_checkpoint_paths]


def events(model_dir: str | os.PathLike[str]) -> Iterator[Any]:
    """Every event of the event files, oldest first."""
    for path in sorted(Path(model_dir).glob("events.out.tfevents.*")):
        yield from v1.train.summary_iterator(str(path))


def scalars(model_dir: str | os.PathLike[str], tag: str) -> dict[int, float]:
    """The values of one tag in the event files, by global step."""
    return {
        event.step: value.simple_value
        for event in events(model_dir)
        for value in event.summary.value
        if value.tag == tag
    }
