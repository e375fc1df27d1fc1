"""Private names of TensorFlow for sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from support.processes import in_a_process, session
from tensorflow.python.util import deprecation

from ray_estimator._tf_private import sessions

v1 = tf.compat.v1


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    """A new graph for each test."""
    with tf.Graph().as_default() as graph:
        yield graph


def test_without_deprecation_notices_hides_them_in_its_block_only(caplog: pytest.LogCaptureFixture) -> None:
    @deprecation.deprecated(None, "another")
    def outdated() -> None:
        pass

    def fail() -> None:
        with sessions.without_deprecation_notices():
            outdated()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert caplog.text == ""
    outdated()
    assert "deprecated" in caplog.text


def test_global_step_read_is_shared_by_all_hooks() -> None:
    step = v1.train.create_global_step()
    sessions.add_global_step_read(step)
    read = sessions.global_step_read()
    assert read.op in sessions.global_step_reads()
    assert sessions.global_step_read() is read
    with session() as opened:
        opened.run(step.assign(7))
        assert opened.run(read) == 7


def test_closing_event_writers_keeps_writers_that_were_open_before(tmp_path: Path) -> None:
    def scalars(folder: str) -> list[float]:
        events = (event for path in (tmp_path / folder).glob("*") for event in v1.train.summary_iterator(str(path)))
        return [value.simple_value for event in events for value in event.summary.value]

    def write(folder: str, number: float) -> v1.summary.FileWriter:
        writer = v1.summary.FileWriterCache.get(str(tmp_path / folder))
        writer.add_summary(v1.Summary(value=[v1.Summary.Value(tag="number", simple_value=number)]), 1)
        return writer

    outer = write("outer", 1.0)
    with sessions.closing_event_writers():
        write("inner", 2.0)
        write("outer", 3.0)
    assert scalars("inner") == [2.0]
    assert write("outer", 4.0) is outer
    v1.summary.FileWriterCache.clear()
    assert scalars("outer") == [1.0, 3.0, 4.0]


def test_open_event_writer_is_used_by_hooks_and_has_a_unique_file(tmp_path: Path) -> None:
    with sessions.closing_event_writers():
        sessions.open_event_writer(str(tmp_path))
        (first,) = tmp_path.iterdir()
        writer = v1.summary.FileWriterCache.get(str(tmp_path))
        sessions.open_event_writer(str(tmp_path))
        assert v1.summary.FileWriterCache.get(str(tmp_path)) is writer
    with sessions.closing_event_writers():
        sessions.open_event_writer(str(tmp_path))
        assert len(set(tmp_path.iterdir()) - {first}) == 1


def test_postpone_stop_cancels_a_request() -> None:
    class StopAtOnce(v1.train.SessionRunHook):
        def after_run(self, run_context: Any, run_values: Any) -> None:
            run_context.request_stop()

    class NotYet(v1.train.SessionRunHook):
        steps = 0

        def after_run(self, run_context: Any, run_values: Any) -> None:
            self.steps += 1
            if self.steps < 3:
                sessions.postpone_stop(run_context)

    v1.train.create_global_step()
    not_yet = NotYet()
    with v1.train.SingularMonitoredSession(hooks=[StopAtOnce(), not_yet]) as monitored:
        while not monitored.should_stop():
            monitored.run(tf.no_op() if not monitored.graph.finalized else [])
    assert not_yet.steps == 3


def test_stop_after_stops_an_evaluation_after_num_evals_batches() -> None:
    batches = v1.get_variable(
        "batches", [], initializer=v1.zeros_initializer(), collections=[v1.GraphKeys.LOCAL_VARIABLES]
    )
    v1.train.create_global_step()
    assert evaluated(batches.assign_add(1.0), batches.read_value(), [sessions.stop_after(4)]) == 4.0


def test_create_eval_step_creates_the_counter_of_stop_after() -> None:
    sessions.create_eval_step()
    (counter,) = v1.get_collection(v1.GraphKeys.EVAL_STEP)
    sessions.create_eval_step()
    assert v1.get_collection(v1.GraphKeys.EVAL_STEP) == [counter]
    hook = sessions.stop_after(1)
    hook._set_evals_completed_tensor(counter)
    with session() as opened:
        assert opened.run(counter) == 0


def test_evaluate_once_runs_until_the_input_ends_and_then_reads_the_values_once() -> None:
    v1.train.create_global_step()
    iterator = v1.data.make_one_shot_iterator(tf.data.Dataset.range(5))
    total = v1.get_variable(
        "total", [], tf.int64, initializer=v1.zeros_initializer(), collections=[v1.GraphKeys.LOCAL_VARIABLES]
    )
    assert evaluated(total.assign_add(iterator.get_next()), {"total": total.read_value()}, []) == {"total": 10}


def test_evaluate_once_restores_the_checkpoint(tmp_path: Path) -> None:
    step = v1.train.create_global_step()
    with session() as opened:
        opened.run(step.assign(7))
        prefix = v1.train.Saver().save(opened, str(tmp_path / "model.ckpt"))
    assert evaluated(tf.no_op(), step.read_value(), [sessions.stop_after(1)], checkpoint_path=prefix) == 7


def evaluated(update: Any, values: Any, hooks: list[Any], checkpoint_path: str | None = None) -> Any:
    return sessions.evaluate_once(
        checkpoint_path=checkpoint_path,
        scaffold=v1.train.Scaffold(),
        eval_ops=update,
        final_ops=values,
        hooks=hooks,
        config=v1.ConfigProto(),
    )


def test_awaited_step_of_a_waiter_hook() -> None:
    assert sessions.awaited_step(v1.train.GlobalStepWaiterHook(7)) == 7
    assert sessions.awaited_step(v1.train.SessionRunHook()) == 0


def test_add_global_step_read_is_used_by_hooks() -> None:
    step = v1.train.create_global_step()
    sessions.add_global_step_read(step)
    (read,) = sessions.global_step_reads()
    hook = v1.train.StopAtStepHook(last_step=3)
    operations = len(v1.get_default_graph().get_operations())
    hook.begin()
    assert len(v1.get_default_graph().get_operations()) == operations
    with session() as opened:
        opened.run(step.assign(5))
        assert opened.run(read.outputs[0]) == 5


def test_global_step_reads_are_fetched_by_hooks() -> None:
    v1.train.create_global_step()
    assert sessions.global_step_reads() == []
    v1.train.StopAtStepHook(last_step=3).begin()
    assert len(sessions.global_step_reads()) == 1


def test_a_task_has_as_many_threads_as_cpus() -> None:
    in_a_process("threads")


def test_attach_listeners_adds_each_listener_once(tmp_path: Path) -> None:
    class Counting(v1.train.CheckpointSaverListener):
        saves = 0

        def after_save(self, session: Any, global_step_value: Any) -> None:
            self.saves += 1

    first, second = Counting(), Counting()
    hook = v1.train.CheckpointSaverHook(str(tmp_path), save_steps=1, listeners=[first])
    sessions.attach_listeners(hook, [first, second])
    v1.train.create_global_step()
    with v1.train.SingularMonitoredSession(hooks=[hook]):
        pass
    assert (first.saves, second.saves) == (1, 1)


def test_stop_step_is_absolute() -> None:
    assert sessions.stop_step(v1.train.StopAtStepHook(num_steps=10), 100) == 110
    assert sessions.stop_step(v1.train.StopAtStepHook(last_step=107), 100) == 107
