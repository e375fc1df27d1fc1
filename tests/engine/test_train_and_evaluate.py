"""train_and_evaluate in this process, and when it evaluates while training runs on workers."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from support.models import NUM_ROWS, endless_input_fn, linear_model_fn, one_pass_input_fn
from support.recording import RecordingHook, RecordingListener, scalars

from ray_estimator import EvalSpec, Exporter, TrainSpec, train_and_evaluate
from ray_estimator._storage.storage import Storage
from ray_estimator.experimental import read_eval_metrics
from ray_estimator.training import _Evaluations

Make = Callable[..., Any]

STEPS_OF_ONE_PASS = NUM_ROWS // 32


class Noting(Exporter):
    """Records its arguments, and returns the step."""

    def __init__(self, name: str = "noting") -> None:
        self._name = name
        self.calls: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return self._name

    def export(self, **arguments: Any) -> int:  # type: ignore[override]
        self.calls.append(arguments)
        return int(arguments["eval_result"]["global_step"])

    @property
    def steps(self) -> list[int]:
        return [int(call["eval_result"]["global_step"]) for call in self.calls]


class Raising(Exporter):
    """Raises on every call."""

    name = "raising"

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self.calls = 0

    def export(self, **arguments: Any) -> None:  # type: ignore[override]
        self.calls += 1
        raise self._error


def estimator_saving(in_process: Make, every_steps: int | None = 5, **config: Any) -> Any:
    config.setdefault("keep_checkpoint_max", None)
    return in_process(linear_model_fn, params={}, save_checkpoints_steps=every_steps, **config)


def evaluated(*exporters: Exporter, **changes: Any) -> EvalSpec:
    return EvalSpec(one_pass_input_fn, **{"steps": None, "throttle_secs": 0, "exporters": exporters, **changes})


# 2, in process


def test_a11_2_every_checkpoint_but_the_first_is_evaluated(in_process: Make) -> None:
    estimator, noting = estimator_saving(in_process), Noting()

    metrics, exports = train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=20), evaluated(noting))

    assert noting.steps == [5, 10, 15, 20]
    assert list(read_eval_metrics(estimator.eval_dir())) == [5, 10, 15, 20]
    assert exports == [20]
    assert metrics == estimator.evaluate(one_pass_input_fn)


def test_a11_2_a_run_that_goes_on_does_not_evaluate_where_it_begins(in_process: Make) -> None:
    estimator, noting = estimator_saving(in_process), Noting()
    estimator.train(endless_input_fn, max_steps=20)

    train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=30), evaluated(noting))

    assert noting.steps == [25, 30]


def test_a11_2_a_checkpoint_soon_after_the_last_evaluation_is_not_evaluated_but_the_last_is(in_process: Make) -> None:
    estimator, noting = estimator_saving(in_process), Noting()
    spec = evaluated(noting, throttle_secs=1000, start_delay_secs=1000)

    train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=20), spec)

    assert noting.steps == [5, 20]


def test_a11_2_the_last_step_is_evaluated_once(in_process: Make) -> None:
    estimator, noting = estimator_saving(in_process, 8), Noting()

    train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=20), evaluated(noting))

    assert noting.steps == [8, 16, 20]


def test_a11_2_the_results_are_those_of_every_exporter_in_order(in_process: Make) -> None:
    estimator = estimator_saving(in_process)
    exporters = [Noting("first"), Noting("second")]

    _, exports = train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=7), evaluated(*exporters))

    assert exports == [7, 7]


def test_a11_2_the_evaluation_is_the_spec_s(in_process: Make) -> None:
    estimator, calls = estimator_saving(in_process), []
    spec = EvalSpec(one_pass_input_fn, steps=2, name="held_out", hooks=[RecordingHook("eval", calls)])

    metrics, exports = train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=5), spec)

    assert exports == []
    assert metrics == estimator.evaluate(one_pass_input_fn, steps=2)
    assert list(read_eval_metrics(estimator.eval_dir("held_out"))) == [5]
    assert calls.count(("eval", "after_run")) == 2


def test_a11_2_training_hooks_and_listeners_run(in_process: Make) -> None:
    estimator, calls, listener = estimator_saving(in_process), [], RecordingListener()
    train_spec = TrainSpec(endless_input_fn, 10, [RecordingHook("train", calls)], [listener])

    train_and_evaluate(estimator, train_spec, evaluated())

    assert calls.count(("train", "after_run")) == 10
    assert [step for call, step in listener.calls if call == "after_save"] == [0, 5, 10]


def test_a11_2_a_run_that_is_over_is_evaluated_once_more(in_process: Make) -> None:
    estimator, noting = estimator_saving(in_process), Noting()
    estimator.train(endless_input_fn, max_steps=10)

    metrics, exports = train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=10), evaluated(noting))

    assert noting.steps == exports == [10]
    assert metrics is not None
    assert metrics["global_step"] == 10
    assert noting.calls[0]["is_the_final_export"]


def test_a11_2_an_evaluation_leaves_the_events_of_training_alone(in_process: Make) -> None:
    estimator = estimator_saving(in_process, save_summary_steps=1, log_step_count_steps=2)

    train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=20), evaluated())

    assert sorted(scalars(estimator.model_dir, "loss")) == list(range(1, 21))
    assert max(scalars(estimator.model_dir, "global_step/sec")) > 15


def test_a11_2_without_checkpoints_there_is_nothing_to_evaluate(in_process: Make) -> None:
    estimator = estimator_saving(in_process, None, save_checkpoints_secs=None)

    with pytest.raises(ValueError, match="There should be a CheckpointSaverHook"):
        train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=5), evaluated())


def test_a11_2_a_model_dir_on_a_remote_store(in_process: Make) -> None:
    model_dir = f"memory://{uuid.uuid4().hex}"
    estimator = in_process(linear_model_fn, params={}, model_dir=model_dir, save_checkpoints_steps=5)
    noting = Noting()

    train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=10), evaluated(noting))

    assert noting.steps == [5, 10]
    assert list(read_eval_metrics(estimator.eval_dir())) == [5, 10]
    assert noting.calls[0]["export_path"] == f"{model_dir}/export/noting"
    Storage().remove_dir(model_dir)


def failing_input_fn() -> tf.data.Dataset:
    raise LookupError("the input's own error")


def test_a11_2_an_error_of_an_evaluation_ends_training_as_itself(in_process: Make) -> None:
    estimator = estimator_saving(in_process)

    with pytest.raises(LookupError, match="the input's own error"):
        train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=20), EvalSpec(failing_input_fn))

    assert estimator.latest_checkpoint().endswith("-5")


@pytest.mark.parametrize("error", [LookupError("its own"), StopIteration("its own"), KeyboardInterrupt("its own")])
def test_a11_2_an_error_of_an_exporter_ends_training_as_itself(in_process: Make, error: BaseException) -> None:
    estimator, raising = estimator_saving(in_process), Raising(error)

    with pytest.raises(type(error), match="its own") as raised:
        train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=20), evaluated(raising))

    assert raised.value is error
    assert raising.calls == 1
    assert estimator.latest_checkpoint().endswith("-5")


# 4


def test_a11_4_what_an_exporter_is_told(in_process: Make) -> None:
    estimator, noting = estimator_saving(in_process), Noting()

    train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=10), evaluated(noting))

    assert all(call["estimator"] is estimator for call in noting.calls)
    assert [call["checkpoint_path"] for call in noting.calls] == [
        str(Path(estimator.model_dir) / name) for name in ("model.ckpt-5", "model.ckpt-10")
    ]
    assert {call["export_path"] for call in noting.calls} == {str(Path(estimator.model_dir) / "export" / "noting")}
    assert [call["is_the_final_export"] for call in noting.calls] == [False, True]
    assert noting.calls[1]["eval_result"].keys() == {"mae", "loss", "global_step"}


# 5


def test_a11_5_training_ends_with_its_input(in_process: Make) -> None:
    estimator, noting = estimator_saving(in_process), Noting()

    metrics, _ = train_and_evaluate(estimator, TrainSpec(one_pass_input_fn), evaluated(noting))

    assert noting.steps == [5, STEPS_OF_ONE_PASS]
    assert metrics is not None
    assert metrics["global_step"] == STEPS_OF_ONE_PASS
    assert not any(call["is_the_final_export"] for call in noting.calls)


def test_a11_5_an_input_that_ends_before_max_steps_gives_no_final_export(in_process: Make) -> None:
    noting = Noting()

    train_and_evaluate(estimator_saving(in_process), TrainSpec(one_pass_input_fn, max_steps=1000), evaluated(noting))

    assert noting.steps[-1] == STEPS_OF_ONE_PASS
    assert not noting.calls[-1]["is_the_final_export"]


# 3: beside a training on workers


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Room:
    """A cluster with or without free resources for a task."""

    def __init__(self, *, free: bool = True) -> None:
        self.free = free

    def has_room(self) -> bool:
        return self.free


class Beside:
    """The driver's view of a training on workers; `train` simulates their progress."""

    def __init__(self, in_process: Make, noting: Noting, **spec: Any) -> None:
        self.estimator = estimator_saving(in_process, keep_checkpoint_max=2)
        self.clock, self.room, self.noting = Clock(), Room(), noting
        spec.setdefault("start_delay_secs", 0)
        self.evaluations = _Evaluations(self.estimator, evaluated(noting, **spec), 100, self.clock)

    def train(self, max_steps: int) -> None:
        self.estimator.train(endless_input_fn, max_steps=max_steps)

    def look(self, after_secs: float = 1.0) -> list[int]:
        self.clock.now += after_secs
        self.evaluations.poll(self.room)  # type: ignore[arg-type]
        return self.noting.steps


@pytest.fixture
def beside(in_process: Make) -> Callable[..., Beside]:
    return lambda **spec: Beside(in_process, Noting(), **spec)


def test_a11_3_each_new_checkpoint_is_evaluated_once_and_the_newest_wins(beside: Callable[..., Beside]) -> None:
    run = beside()
    assert run.look() == []
    run.train(15)
    assert run.look() == [15]
    assert run.look() == [15]
    run.train(20)
    assert run.look() == [15, 20]


def test_a11_3_the_checkpoint_that_training_begins_with_is_not_evaluated(in_process: Make) -> None:
    estimator_saving(in_process).train(endless_input_fn, max_steps=10)
    run = Beside(in_process, Noting())
    assert run.look() == []
    run.train(11)
    assert run.look() == [11]


def test_a11_3_the_first_evaluation_waits_for_start_delay_secs(beside: Callable[..., Beside]) -> None:
    run = beside(start_delay_secs=60)
    run.train(5)
    assert run.look(59) == []
    assert run.look(1) == [5]


def test_a11_3_evaluations_keep_throttle_secs_between_their_beginnings(beside: Callable[..., Beside]) -> None:
    run = beside(throttle_secs=30)
    run.train(5)
    assert run.look() == [5]
    run.train(10)
    assert run.look(29) == [5]
    assert run.look(1) == [5, 10]


def test_a11_3_without_room_evaluations_wait_and_say_so_once(
    beside: Callable[..., Beside], caplog: pytest.LogCaptureFixture
) -> None:
    run = beside()
    run.room.free = False
    for steps in (5, 10):
        run.train(steps)
        assert run.look() == []
    assert caplog.text.count("waits, because the training group leaves no free {'CPU': 1} in the cluster") == 1
    run.room.free = True
    assert run.look() == [10]
    run.room.free = False
    run.train(15)
    run.evaluations.run_last()
    assert run.noting.steps == [10, 15]
    run.evaluations.run_last()
    assert run.noting.steps == [10, 15]


def test_a11_3_a_checkpoint_that_is_deleted_while_it_is_evaluated_is_passed_over(
    beside: Callable[..., Beside], caplog: pytest.LogCaptureFixture
) -> None:
    run = beside(hooks=[lambda: trains_on()])

    def trains_on() -> Any:
        # Training does not delete what is being read; somebody else has.
        if run.estimator.latest_checkpoint().endswith("-5"):
            run.train(20)
            for file in Path(run.estimator.model_dir).glob("model.ckpt-5.*"):
                file.unlink()
            raise LookupError("a file is gone")
        return RecordingHook("eval", [])

    run.train(5)
    assert run.look() == []
    assert "model.ckpt-5 was deleted before its evaluation ended" in caplog.text
    assert "keep_checkpoint_max=2" in caplog.text
    assert run.look() == [20]


def test_a11_3_an_error_of_an_evaluation_is_raised(beside: Callable[..., Beside]) -> None:
    run = beside(exporters=[Raising(LookupError("its own"))])
    run.train(5)
    with pytest.raises(LookupError, match="its own"):
        run.look()


def test_a11_3_a_missing_or_unchanged_checkpoint_is_said_at_most_every_ten_minutes(
    beside: Callable[..., Beside], caplog: pytest.LogCaptureFixture
) -> None:
    run = beside()
    said = "There is no new checkpoint to evaluate in"
    with caplog.at_level(logging.WARNING):
        run.look(599)
        assert said not in caplog.text
        run.look(2)
        run.look(599)
        assert caplog.text.count(said) == 1
        run.train(5)
        run.look()
        run.look(599)
        assert caplog.text.count(said) == 1
        run.look(2)
        assert caplog.text.count(said) == 2


def test_a11_3_no_checkpoint_at_all_is_an_error_at_the_end(beside: Callable[..., Beside]) -> None:
    with pytest.raises(RuntimeError, match="There was no new checkpoint after the training in"):
        beside().evaluations.run_last()
