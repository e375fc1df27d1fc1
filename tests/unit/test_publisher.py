"""Publishing in the background: one checkpoint in flight, the newest one waiting, and the end of the thread."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_estimator._checkpoints.store import CheckpointStore, Retention
from ray_estimator._engine.checkpointing.publisher import Publisher, Saved
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import StepTimeoutError

DEADLINE_SECS = 20.0


class GatedStore(CheckpointStore):
    """A store that publishes only when the test releases its gate, or fails."""

    def __init__(self, model_dir: Path) -> None:
        super().__init__(str(model_dir), Storage())
        self.gate = threading.Semaphore(0)
        self.begun: list[int] = []
        self.error: Exception | None = None

    def publish(self, local_prefix: str, step: int, *args: Any, **kwargs: Any) -> Any:
        self.begun.append(step)
        assert self.gate.acquire(timeout=DEADLINE_SECS)
        if self.error is not None:
            raise self.error
        return super().publish(local_prefix, step, *args, **kwargs)

    def published_steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in self.published()]


@pytest.fixture
def store(tmp_path: Path) -> GatedStore:
    return GatedStore(tmp_path / "model")


def saved(store: CheckpointStore, step: int) -> Saved:
    """Write a checkpoint to a staging directory, as a Saver does."""
    with contextlib.ExitStack() as staging:
        prefix = Path(staging.enter_context(store.staging_dir())) / f"model.ckpt-{step}"
        for suffix in (".index", ".data-00000-of-00001"):
            Path(f"{prefix}{suffix}").write_text(f"{step}{suffix}")
        return Saved(str(prefix), step, Retention(), staging.pop_all())


def begins(store: GatedStore, publisher: Publisher, step: int) -> None:
    """Submit a checkpoint and return when its publication has begun."""
    publisher.submit(saved(store, step))
    until(lambda: step in store.begun)


def until(condition: Callable[[], bool]) -> None:
    changed = threading.Event()
    for _ in range(int(DEADLINE_SECS / 0.01)):
        if condition():
            return
        changed.wait(0.01)
    raise AssertionError("The condition never came true.")


def publisher_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "publisher"]


def ignore(doing: str) -> None:
    pass


def save_and_raise(store: CheckpointStore) -> None:
    with Publisher(store, DEADLINE_SECS) as publisher:
        publisher.submit(saved(store, 1))
        raise KeyError("of training")


def test_submit_does_not_wait_for_the_store(store: GatedStore) -> None:
    with Publisher(store, DEADLINE_SECS) as publisher:
        begins(store, publisher, 1)
        assert store.published_steps() == []
        store.gate.release()
        publisher.wait(ignore)
        assert store.published_steps() == [1]


def test_the_newest_checkpoint_replaces_one_that_waits(store: GatedStore, caplog: pytest.LogCaptureFixture) -> None:
    with Publisher(store, DEADLINE_SECS) as publisher:
        begins(store, publisher, 1)
        superseded = saved(store, 2)
        publisher.submit(superseded)
        publisher.submit(saved(store, 3))
        assert not Path(superseded.prefix).parent.exists()
        store.gate.release(2)
        publisher.wait(ignore)
    assert store.published_steps() == store.begun == [1, 3]
    assert "step 2 is not published, step 3 is next" in caplog.text


def test_wait_reports_what_is_published(store: GatedStore) -> None:
    said: list[str] = []

    def on_wait(doing: str) -> None:
        said.append(doing)
        store.gate.release()

    with Publisher(store, DEADLINE_SECS) as publisher:
        begins(store, publisher, 7)
        publisher.wait(on_wait)
    assert said == ["publishing step 7"]


def test_wait_returns_at_once_if_nothing_was_submitted(store: GatedStore) -> None:
    with Publisher(store, DEADLINE_SECS) as publisher:
        publisher.wait(ignore)


def test_wait_times_out_if_the_store_hangs(store: GatedStore) -> None:
    with Publisher(store, timeout_secs=0.05) as publisher:
        begins(store, publisher, 4)
        with pytest.raises(StepTimeoutError, match="publishing step 4"):
            publisher.wait(ignore)
        store.gate.release()


def test_an_error_of_the_store_is_raised_and_staging_directories_are_removed(store: GatedStore, tmp_path: Path) -> None:
    store.error = PermissionError("no place left for you")
    with Publisher(store, DEADLINE_SECS) as publisher:
        begins(store, publisher, 1)
        publisher.submit(saved(store, 2))
        store.gate.release()
        with pytest.raises(PermissionError, match="no place left"):
            publisher.wait(ignore)
        with pytest.raises(PermissionError, match="no place left"):
            publisher.check()
        with pytest.raises(PermissionError, match="no place left"):
            publisher.submit(saved(store, 3))
    assert store.begun == [1]
    assert list((tmp_path / "model").glob(".saving-*")) == []


def test_a_checkpoint_submitted_before_an_error_is_still_published(store: GatedStore) -> None:
    store.gate.release(2)
    with pytest.raises(KeyError, match="of training"):
        save_and_raise(store)
    assert store.published_steps() == [1]


def test_an_error_of_training_is_not_hidden_by_one_of_the_store(
    store: GatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.error = OSError("the disk is full")
    store.gate.release()
    with pytest.raises(KeyError, match="of training"):
        save_and_raise(store)
    assert "the disk is full" in caplog.text


def test_leaving_the_context_joins_the_thread(store: GatedStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store.gate.release()
    with Publisher(store, DEADLINE_SECS) as publisher:
        publisher.submit(saved(store, 1))
    assert publisher_threads() == []
    assert "Published the checkpoint of step 1." in caplog.text


def test_leaving_the_context_joins_the_thread_after_a_failure(store: GatedStore) -> None:
    store.error = OSError("the disk is full")
    store.gate.release()
    with Publisher(store, DEADLINE_SECS) as publisher:
        publisher.submit(saved(store, 1))
    assert publisher_threads() == []


def test_a_store_that_hangs_does_not_block_the_exit(store: GatedStore, caplog: pytest.LogCaptureFixture) -> None:
    with Publisher(store, DEADLINE_SECS, exit_timeout_secs=0.01) as publisher:
        begins(store, publisher, 1)
        waiting = saved(store, 2)
        publisher.submit(waiting)
    (thread,) = publisher_threads()
    assert "step 1 was not published within" in caplog.text
    assert not Path(waiting.prefix).parent.exists()
    store.gate.release(2)
    thread.join(DEADLINE_SECS)
    assert not thread.is_alive()
    assert store.begun == [1]


def test_wait_restores_a_state_file_that_was_overwritten(store: GatedStore) -> None:
    store.gate.release()
    asked = []
    with Publisher(store, DEADLINE_SECS, lambda: asked.append(None)) as publisher:
        publisher.submit(saved(store, 1))
        publisher.wait(ignore)
        store.write_text("checkpoint", 'model_checkpoint_path: "model.ckpt-0"')
        publisher.wait(ignore)
    assert [checkpoint.step for checkpoint in store.published()] == [1]
    assert asked
