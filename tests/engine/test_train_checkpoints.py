"""Estimator.train: checkpoints, saving listeners, restoring and warm start."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.models import endless_input_fn, linear_model_fn, one_pass_input_fn
from support.recording import (
    EACH_SAVE_ARRIVES,
    RecordingHook,
    RecordingListener,
    published_steps,
    saved_steps,
    with_spec,
)

from ray_estimator import Estimator, EstimatorSpec, RunConfig

Make = Callable[..., Any]


def names_in(directory: str | os.PathLike[str]) -> set[str]:
    return {name for name in os.listdir(directory) if not name.startswith(("events.", "."))}


def files_of(step: int) -> set[str]:
    suffixes = ("index", "meta", "data-00000-of-00001", "input-00000-of-00001", "manifest.json")
    return {f"model.ckpt-{step}.{suffix}" for suffix in suffixes}


# 9


def test_a4_9_checkpoints_at_the_start_at_intervals_and_at_the_end(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=3)
    estimator.train(endless_input_fn, steps=8, saving_listeners=EACH_SAVE_ARRIVES)

    assert published_steps(estimator.model_dir) == saved_steps(estimator.model_dir) == [0, 3, 6, 8]
    assert estimator.latest_checkpoint() == os.path.join(estimator.model_dir, "model.ckpt-8")


def test_a4_9_a_last_step_that_is_saved_is_not_saved_again(in_process: Make) -> None:
    listener = RecordingListener()
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=3)

    estimator.train(endless_input_fn, steps=6, saving_listeners=[listener])

    assert [step for method, step in listener.calls if method == "after_save"] == [0, 3, 6]


def test_a4_9_a_run_that_goes_on_saves_at_the_step_that_it_restored(in_process: Make) -> None:
    listener = RecordingListener()
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=3)
    estimator.train(endless_input_fn, steps=4, saving_listeners=EACH_SAVE_ARRIVES)

    estimator.train(endless_input_fn, steps=4, saving_listeners=[listener])

    assert [step for method, step in listener.calls if method == "after_save"] == [4, 7, 8]
    assert published_steps(estimator.model_dir) == [0, 3, 4, 7, 8]


def test_a4_9_the_files_are_those_of_tensorflow(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}).train(endless_input_fn, steps=2)

    assert names_in(estimator.model_dir) == {"checkpoint", "graph.pbtxt", *files_of(0), *files_of(2)}
    assert tf.train.latest_checkpoint(estimator.model_dir) == estimator.latest_checkpoint()
    with tf.Graph().as_default():
        v1.train.import_meta_graph(f"{estimator.latest_checkpoint()}.meta")
        assert "dense/kernel" in {variable.op.name for variable in v1.global_variables()}


def test_a4_9_the_graph_is_there_before_the_first_checkpoint(in_process: Make) -> None:
    found = []

    class Looks(v1.train.CheckpointSaverListener):
        def before_save(self, session: Any, global_step_value: Any) -> None:
            found.append(names_in(estimator.model_dir))

    estimator = in_process(linear_model_fn, params={})
    estimator.train(endless_input_fn, steps=1, saving_listeners=[Looks()])

    assert found[0] == {"graph.pbtxt"}


def test_a4_9_graphs_may_be_left_out(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}, checkpoint_save_graph_def=False)
    estimator.train(endless_input_fn, steps=1)

    names = names_in(estimator.model_dir)
    assert "checkpoint" in names
    assert not [name for name in names if name.endswith((".pbtxt", ".meta"))]


def test_a4_9_time_makes_checkpoints_too(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_secs=1e-9)
    estimator.train(endless_input_fn, steps=3, saving_listeners=EACH_SAVE_ARRIVES)

    assert saved_steps(estimator.model_dir) == [0, 1, 2, 3]


@pytest.mark.parametrize("off", [None, 0])
def test_a4_9_without_intervals_there_are_no_checkpoints(in_process: Make, off: int | None) -> None:
    calls: list[tuple[str, str]] = []
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=off, save_checkpoints_secs=None)

    estimator.train(endless_input_fn, steps=3, hooks=[RecordingHook("user", calls)])

    assert calls.count(("user", "after_run")) == 3
    assert names_in(estimator.model_dir) == set()
    assert estimator.latest_checkpoint() is None


def test_a4_9_a_directory_that_was_moved_trains_on(in_process: Make, tmp_path: Path) -> None:
    in_process(linear_model_fn, params={}, model_dir=tmp_path / "old").train(endless_input_fn, steps=3)

    (tmp_path / "old").rename(tmp_path / "new")
    estimator = in_process(linear_model_fn, params={}, model_dir=tmp_path / "new").train(endless_input_fn, steps=2)

    assert "/" not in (tmp_path / "new" / "checkpoint").read_text()
    assert published_steps(tmp_path / "new") == [0, 3, 5]
    assert estimator.latest_checkpoint() == str(tmp_path / "new" / "model.ckpt-5")
    assert not (tmp_path / "old").exists()


def test_a4_9_only_the_newest_checkpoints_are_kept(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=1, keep_checkpoint_max=2)
    estimator.train(endless_input_fn, steps=5, saving_listeners=EACH_SAVE_ARRIVES)

    assert published_steps(estimator.model_dir) == saved_steps(estimator.model_dir) == [4, 5]
    assert names_in(estimator.model_dir) == {"checkpoint", "graph.pbtxt", *files_of(4), *files_of(5)}


def test_a4_9_five_checkpoints_are_kept_by_default(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=1)
    estimator.train(endless_input_fn, steps=7, saving_listeners=EACH_SAVE_ARRIVES)

    assert saved_steps(estimator.model_dir) == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("every", [None, 0])
def test_a4_9_every_checkpoint_may_be_kept(in_process: Make, every: int | None) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=1, keep_checkpoint_max=every)
    estimator.train(endless_input_fn, steps=7, saving_listeners=EACH_SAVE_ARRIVES)

    assert published_steps(estimator.model_dir) == saved_steps(estimator.model_dir) == list(range(8))


def test_a4_9_one_more_is_kept_for_every_so_many_hours(in_process: Make) -> None:
    estimator = in_process(
        linear_model_fn,
        params={},
        save_checkpoints_steps=1,
        keep_checkpoint_max=1,
        keep_checkpoint_every_n_hours=1e-12,
    )
    estimator.train(endless_input_fn, steps=3, saving_listeners=EACH_SAVE_ARRIVES)

    assert published_steps(estimator.model_dir) == [3]
    # The hours count from the first checkpoint, which therefore goes.
    assert saved_steps(estimator.model_dir) == [1, 2, 3]


# 10


def own_saver(estimator: Any, **kwargs: Any) -> Any:
    return v1.train.CheckpointSaverHook(estimator.model_dir, **{"save_steps": 2, **kwargs})


def test_a4_10_a_saver_hook_of_the_users_takes_the_place_of_the_default_one(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=1)

    estimator.train(endless_input_fn, steps=5, hooks=[own_saver(estimator)])

    assert saved_steps(estimator.model_dir) == [0, 2, 4, 5]
    estimator.train(endless_input_fn, steps=1)
    assert estimator.get_variable_value("global_step") == 6


@pytest.mark.parametrize("field", ["training_hooks", "training_chief_hooks"])
def test_a4_10_a_saver_hook_of_the_spec_takes_the_place_of_the_default_one(in_process: Make, field: str) -> None:
    model_fn = with_spec(linear_model_fn, **{field: lambda: [own_saver(estimator)]})
    estimator: Any = in_process(model_fn, params={}, save_checkpoints_steps=1)

    estimator.train(endless_input_fn, steps=5)

    assert saved_steps(estimator.model_dir) == [0, 2, 4, 5]


def test_a4_10_a_saver_hook_of_the_users_uses_the_default_saver(in_process: Make, tmp_path: Path) -> None:
    estimator = in_process(linear_model_fn, params={}, model_dir=tmp_path / "old", keep_checkpoint_max=2)
    estimator.train(endless_input_fn, steps=5, hooks=[own_saver(estimator, save_steps=1)])

    assert saved_steps(estimator.model_dir) == [4, 5]
    (tmp_path / "old").rename(tmp_path / "new")
    moved = in_process(linear_model_fn, params={}, model_dir=tmp_path / "new")
    assert moved.latest_checkpoint() == str(tmp_path / "new" / "model.ckpt-5")


def test_a4_10_the_saver_of_the_scaffold_wins(in_process: Make) -> None:
    def some_variables() -> Any:
        wanted = [v for v in v1.global_variables() if v.op.name != "dense/bias"]
        return v1.train.Scaffold(saver=v1.train.Saver(wanted, save_relative_paths=True))

    estimator = in_process(with_spec(linear_model_fn, scaffold=some_variables), params={}, save_checkpoints_steps=1)
    estimator.train(endless_input_fn, steps=9)

    assert estimator.get_variable_names() == ["dense/kernel", "global_step"]
    assert saved_steps(estimator.model_dir)[-1] == 9


def test_a4_10_a_saver_hook_may_share_the_scaffold_of_the_spec(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        scaffold = v1.train.Scaffold()
        spec = linear_model_fn(features, labels, mode, params)
        hooks = [v1.train.CheckpointSaverHook(estimator.model_dir, save_steps=2, scaffold=scaffold)]
        return spec._replace(scaffold=scaffold, training_chief_hooks=hooks)

    estimator = in_process(model_fn, params={})
    estimator.train(endless_input_fn, steps=3)

    assert saved_steps(estimator.model_dir) == [0, 2, 3]


def test_a4_10_the_saver_of_the_scaffold_says_how_many_to_keep(in_process: Make) -> None:
    def keeps_two() -> Any:
        return v1.train.Scaffold(saver=v1.train.Saver(max_to_keep=2))

    estimator = in_process(with_spec(linear_model_fn, scaffold=keeps_two), params={}, save_checkpoints_steps=1)
    estimator.train(endless_input_fn, steps=5, saving_listeners=EACH_SAVE_ARRIVES)

    assert published_steps(estimator.model_dir) == saved_steps(estimator.model_dir) == [4, 5]


def test_a4_10_a_saver_in_the_collection_wins(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        spec = linear_model_fn(features, labels, mode, params)
        wanted = [v for v in v1.global_variables() if v.op.name != "dense/bias"]
        v1.add_to_collection(v1.GraphKeys.SAVERS, v1.train.Saver(wanted))
        return spec

    estimator = in_process(model_fn, params={}).train(endless_input_fn, steps=1)

    assert estimator.get_variable_names() == ["dense/kernel", "global_step"]


# 11


def test_a4_11_the_order_of_a_listeners_calls(in_process: Make) -> None:
    listener = RecordingListener()
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=2)

    estimator.train(endless_input_fn, steps=3, saving_listeners=[listener])

    assert listener.calls == [
        ("begin", None),
        *(("before_save", 0), ("after_save", 0)),
        *(("before_save", 2), ("after_save", 2)),
        *(("before_save", 3), ("after_save", 3)),
        ("end", 3),
    ]


def test_a4_11_the_checkpoint_is_published_between_before_and_after_save(in_process: Make) -> None:
    seen = []

    class Looks(v1.train.CheckpointSaverListener):
        def before_save(self, session: Any, global_step_value: Any) -> None:
            seen.append(published_steps(estimator.model_dir))

        def after_save(self, session: Any, global_step_value: Any) -> None:
            seen.append(published_steps(estimator.model_dir))

    estimator = in_process(linear_model_fn, params={})
    estimator.train(endless_input_fn, steps=3, saving_listeners=[Looks()])

    assert seen == [[], [0], [0], [0, 3]]


def test_a4_11_a_listener_that_returns_true_stops_training(in_process: Make) -> None:
    stops, other = RecordingListener(stop_at=4), RecordingListener()
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=2)

    estimator.train(endless_input_fn, steps=100, saving_listeners=[stops, other])

    assert estimator.get_variable_value("global_step") == 4
    assert other.calls[-2:] == [("after_save", 4), ("end", 4)]


@pytest.mark.parametrize("with_own_hook", [False, True])
def test_a4_11_a_listener_is_attached_once(in_process: Make, with_own_hook: bool) -> None:
    listener = RecordingListener()
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=2)
    hooks = [own_saver(estimator, listeners=[listener])] if with_own_hook else []

    estimator.train(endless_input_fn, steps=2, hooks=hooks, saving_listeners=[listener, listener])

    assert [method for method, _ in listener.calls].count("begin") == 1
    assert [step for method, step in listener.calls if method == "after_save"] == [0, 2]


def test_a4_11_listeners_are_attached_to_the_users_first_saver_hook(in_process: Make, tmp_path: Path) -> None:
    listener = RecordingListener(stop_at=4)
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=None, save_checkpoints_secs=None)
    second = v1.train.CheckpointSaverHook(str(tmp_path / "second"), save_steps=1)

    estimator.train(endless_input_fn, steps=100, hooks=[own_saver(estimator), second], saving_listeners=[listener])

    assert [step for method, step in listener.calls if method == "after_save"] == [0, 2, 4]
    assert estimator.get_variable_value("global_step") == 4


def test_a4_11_without_a_saver_hook_listeners_are_refused(in_process: Make) -> None:
    estimator = in_process(linear_model_fn, params={}, save_checkpoints_steps=None, save_checkpoints_secs=None)

    with pytest.raises(ValueError, match="There should be a CheckpointSaverHook to use saving_listeners"):
        estimator.train(endless_input_fn, steps=1, saving_listeners=[RecordingListener()])


@pytest.mark.parametrize("listeners", [[1], ["listener"], 1.5, [RecordingHook("hook", [])], RecordingListener()])
def test_a4_11_what_is_no_listener_is_refused(in_process: Make, listeners: Any) -> None:
    with pytest.raises(TypeError, match="saving_listeners must be a list of CheckpointSaverListener"):
        in_process(linear_model_fn).train(endless_input_fn, steps=1, saving_listeners=listeners)


def test_a4_11_listeners_may_be_any_iterable_and_factories(in_process: Make) -> None:
    made: list[RecordingListener] = []

    def factory() -> RecordingListener:
        made.append(RecordingListener())
        return made[-1]

    in_process(linear_model_fn, params={}).train(endless_input_fn, steps=1, saving_listeners=iter([factory]))

    assert made[0].calls[-1] == ("end", 1)


# 12


def test_a4_12_training_goes_on_from_the_newest_checkpoint(in_process: Make, tmp_path: Path) -> None:
    params = {"learning_rate": 0.1}

    def batches(start: int) -> Callable[[], tf.data.Dataset]:
        return lambda: endless_input_fn().skip(start)

    whole = in_process(linear_model_fn, params=params, model_dir=tmp_path / "whole").train(batches(0), steps=6)
    parts = in_process(linear_model_fn, params=params, model_dir=tmp_path / "parts").train(batches(0), steps=4)
    again = in_process(linear_model_fn, params=params, model_dir=tmp_path / "parts").train(batches(4), steps=2)

    assert parts.get_variable_value("global_step") == again.get_variable_value("global_step") == 6
    kernel = whole.get_variable_value("dense/kernel")
    assert np.array_equal(again.get_variable_value("dense/kernel"), kernel)


def test_a4_12_a_changed_shape_is_an_error_that_says_so(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        prediction = tf.matmul(features, v1.get_variable("weights", [4, params["units"]]))
        loss = tf.reduce_mean(tf.square(prediction - labels))
        return EstimatorSpec(mode, loss=loss, train_op=v1.assign_add(v1.train.get_global_step(), 1))

    in_process(model_fn, params={"units": 1}).train(endless_input_fn, steps=1)

    with pytest.raises(tf.errors.InvalidArgumentError, match="a mismatch between"):
        in_process(model_fn, params={"units": 2}).train(endless_input_fn, steps=1)


def test_a4_12_variables_that_hooks_add_when_they_begin_are_saved_and_restored(in_process: Make) -> None:
    class CountsItsRuns(v1.train.SessionRunHook):
        def begin(self) -> None:
            runs = v1.get_variable("runs", [], initializer=v1.zeros_initializer(), trainable=False)
            self._count = v1.assign_add(runs, 1.0)

        def after_create_session(self, session: Any, coord: Any) -> None:
            session.run(self._count)

    estimator = in_process(linear_model_fn, params={})
    for _ in range(3):
        estimator.train(endless_input_fn, steps=1, hooks=[CountsItsRuns()])

    assert estimator.get_variable_value("runs") == 3.0


def test_a4_12_init_fn_runs_only_without_a_checkpoint_and_local_init_op_always(in_process: Make) -> None:
    init_fn_calls = []
    local_values = []

    def scaffold() -> Any:
        local = v1.get_local_variable("local", initializer=tf.constant(7.0))
        tf.identity(local, name="local_value")
        (kernel,) = [v for v in v1.trainable_variables() if v.op.name == "dense/kernel"]
        fill = v1.assign(kernel, tf.fill([4, 1], 5.0))

        def init_fn(scaffold: Any, session: Any) -> None:
            init_fn_calls.append("init_fn")
            session.run(fill)

        return v1.train.Scaffold(init_fn=init_fn, local_init_op=v1.variables_initializer([local]))

    class ReadsLocal(v1.train.SessionRunHook):
        def after_create_session(self, session: Any, coord: Any) -> None:
            local_values.append(session.run(v1.get_default_graph().get_tensor_by_name("local_value:0")))

    model_fn = with_spec(linear_model_fn, scaffold=scaffold)
    estimator = in_process(model_fn, params={"learning_rate": 0.0})
    estimator.train(endless_input_fn, steps=1, hooks=[ReadsLocal()])
    estimator.train(endless_input_fn, steps=1, hooks=[ReadsLocal()])

    assert init_fn_calls == ["init_fn"]
    assert estimator.get_variable_value("dense/kernel") == pytest.approx(np.full((4, 1), 5.0))
    assert local_values == [7.0, 7.0]


# 14


@pytest.fixture
def trained(in_process: Make, tmp_path: Path) -> Any:
    """A model whose weights are not the initial ones any more."""
    estimator = in_process(linear_model_fn, params={"learning_rate": 0.1}, model_dir=tmp_path / "trained")
    return estimator.train(endless_input_fn, steps=5)


@pytest.fixture
def warm(tmp_path: Path) -> Make:
    """Makes Estimators whose weights move from where they start by nothing."""
    from ray.train import ScalingConfig

    def make(warm_start_from: Any, model_fn: Callable[..., Any] = linear_model_fn) -> Estimator:
        config = RunConfig(scaling_config=ScalingConfig(num_workers=0))
        params = {"learning_rate": 0.0}
        return Estimator(model_fn, tmp_path / "warm", config, params, warm_start_from=warm_start_from)

    return make


def value(estimator: Any, name: str) -> Any:
    return estimator.get_variable_value(name)


def test_a4_14_a_model_that_is_trained_does_not_warm_start(
    trained: Any, warm: Make, caplog: pytest.LogCaptureFixture
) -> None:
    warm(None).train(endless_input_fn, steps=1)

    with caplog.at_level(logging.INFO):
        estimator = warm(trained.latest_checkpoint()).train(endless_input_fn, steps=1)

    assert not any("Warm-starting" in message for message in caplog.messages)

    assert value(estimator, "dense/kernel") == pytest.approx(np.ones((4, 1)))
    assert value(estimator, "global_step") == 2


def test_a4_14_warm_start_is_logged(trained: Any, warm: Make, caplog: pytest.LogCaptureFixture) -> None:
    path = trained.latest_checkpoint()

    with caplog.at_level(logging.INFO):
        warm(path).train(one_pass_input_fn)

    (line,) = [message for message in caplog.messages if message.startswith("Warm-starting with WarmStartSettings: ")]
    assert path in line
