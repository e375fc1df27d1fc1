"""Saving in the background: what steps and runs wait for, and which errors of the store reach the user."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from fsspec.implementations.memory import MemoryFileSystem
from support.models import endless_input_fn, linear_model_fn
from support.recording import EACH_SAVE_ARRIVES, published_steps, saved_steps

from ray_estimator._checkpoints.store import CheckpointStore
from ray_estimator._engine.events import sync
from ray_estimator._storage.storage import Storage

Make = Callable[..., Any]

DEADLINE_SECS = 30.0


class AtStep(v1.train.SessionRunHook):
    """Calls a function after a given step."""

    def __init__(self, step: int, call: Callable[[], Any]) -> None:
        self._step = step
        self._call = call

    def after_run(self, run_context: Any, run_values: Any) -> None:
        if run_context.session.run(v1.train.get_global_step()) == self._step:
            self._call()


@pytest.fixture
def open_store(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Blocks the store until this event is set."""
    opened, publish = threading.Event(), CheckpointStore.publish

    def publish_when_open(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert opened.wait(DEADLINE_SECS)
        return publish(self, *args, **kwargs)

    monkeypatch.setattr(CheckpointStore, "publish", publish_when_open)
    return opened


def test_steps_do_not_wait_for_the_store_and_the_end_does(in_process: Make, open_store: threading.Event) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=2)
    # In a store that makes steps wait, step 5 is never reached.
    estimator.train(endless_input_fn, steps=6, hooks=[AtStep(5, open_store.set)])

    assert published_steps(estimator.model_dir) == saved_steps(estimator.model_dir)
    assert published_steps(estimator.model_dir)[-1] == 6


def test_a_listener_sees_its_checkpoint_published(in_process: Make) -> None:
    seen = []

    class Looks(v1.train.CheckpointSaverListener):
        def after_save(self, session: Any, global_step_value: Any) -> None:
            seen.append((int(global_step_value), estimator.latest_checkpoint()))

    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=1)
    estimator.train(endless_input_fn, steps=3, saving_listeners=[Looks()])

    assert seen == [(step, f"{estimator.model_dir}/model.ckpt-{step}") for step in range(4)]


def test_a_save_that_fails_ends_training_with_the_stores_own_error(
    in_process: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = CheckpointStore.publish

    def fail_at_2(self: Any, local_prefix: str, step: int, *args: Any, **kwargs: Any) -> Any:
        if step == 2:
            raise PermissionError("this bucket is closed")
        return publish(self, local_prefix, step, *args, **kwargs)

    monkeypatch.setattr(CheckpointStore, "publish", fail_at_2)
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=2)

    with pytest.raises(PermissionError, match="this bucket is closed"):
        estimator.train(endless_input_fn, steps=10**6, saving_listeners=EACH_SAVE_ARRIVES)

    assert published_steps(estimator.model_dir) == [0]
    assert list(Path(estimator.model_dir).glob(".saving-*")) == []


def test_the_graph_of_every_checkpoint_is_that_of_the_first(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=1)
    estimator.train(endless_input_fn, steps=2, saving_listeners=EACH_SAVE_ARRIVES)

    first, *others = (Path(f"{estimator.model_dir}/model.ckpt-{step}.meta").read_bytes() for step in range(3))
    assert others == [first, first]
    with tf.Graph().as_default(), v1.Session() as session:
        saver = v1.train.import_meta_graph(f"{estimator.latest_checkpoint()}.meta")
        saver.restore(session, estimator.latest_checkpoint())
        (step,) = (variable for variable in v1.global_variables() if variable.op.name == "global_step")
        assert session.run(step) == 2


# Event files on a remote store


@pytest.fixture
def remote_dir() -> Any:
    MemoryFileSystem.store.clear()
    yield "memory://bucket/model"
    MemoryFileSystem.store.clear()


def losses_in(folder: Any) -> dict[int, float]:
    """Return the scalar `loss` by step, as TensorBoard reads it from a copy of the remote event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for path, file in MemoryFileSystem.store.items():
        if "tfevents" in path:
            (folder / Path(path).name).write_bytes(file.getvalue())
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    is_there = "loss" in accumulator.Tags()["scalars"]
    return {event.step: event.value for event in accumulator.Scalars("loss")} if is_there else {}


def test_events_are_readable_during_training(
    in_process: Make, remote_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "_PUBLISH_INTERVAL_SECS", 0.05)
    found: list[dict[int, float]] = []
    step_5_is_there = threading.Event()

    def look() -> None:
        for _ in range(int(DEADLINE_SECS / 0.05)):
            if any("tfevents" in path for path in MemoryFileSystem.store):
                found.append(losses_in(tmp_path))
                if 5 in found[-1]:
                    return
            step_5_is_there.wait(0.05)

    estimator = in_process(linear_model_fn, params={}, model_dir=remote_dir, save_summary_steps=1)
    estimator.train(endless_input_fn, steps=8, hooks=[AtStep(6, look)])

    assert 5 in found[-1]
    assert 8 not in found[-1]
    assert sorted(losses_in(tmp_path)) == list(range(1, 9))


def test_events_of_a_resumed_run_continue_and_are_not_duplicated(
    in_process: Make, remote_dir: str, tmp_path: Path
) -> None:
    estimator = in_process(linear_model_fn, params={}, model_dir=remote_dir, save_summary_steps=1)
    estimator.train(endless_input_fn, steps=3).train(endless_input_fn, steps=3)

    assert sorted(losses_in(tmp_path)) == list(range(1, 7))
    event_files = [path for path in MemoryFileSystem.store if "tfevents" in path]
    assert len(event_files) == 2


def test_events_that_could_not_be_published_during_training_are_published_at_the_end(
    in_process: Make, remote_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(sync, "_PUBLISH_INTERVAL_SECS", 0.01)
    publish, failed = sync.EventFiles.publish, threading.Event()

    def fail_once(self: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise PermissionError("not now")
        publish(self)

    monkeypatch.setattr(sync.EventFiles, "publish", fail_once)
    estimator = in_process(linear_model_fn, params={}, model_dir=remote_dir, save_summary_steps=1)
    estimator.train(endless_input_fn, steps=4, hooks=[AtStep(2, lambda: failed.wait(DEADLINE_SECS))])

    assert "failed and is retried: not now" in caplog.text
    assert sorted(losses_in(tmp_path)) == [1, 2, 3, 4]


def test_an_upload_that_fails_after_an_error_is_logged_and_does_not_replace_it(
    remote_dir: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: sync.EventFiles) -> None:
        raise PermissionError("no access")

    monkeypatch.setattr(sync.EventFiles, "publish", fail)
    with pytest.raises(KeyError, match="of training"), sync.local_events(Storage(), remote_dir):
        raise KeyError("of training")
    assert "were not published: no access" in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("Publishing event files")]
