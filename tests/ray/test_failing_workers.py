"""What goes wrong on workers: they die, hang, disagree, or their user's code raises. Nothing hangs for ever."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from support.models import X, Y, endless_input_fn, linear_model_fn
from support.probes import AtStep, note, notes

from ray_estimator import (
    EstimatorSpec,
    ModuleNotShippedError,
    ResourcesTimeoutError,
    StepTimeoutError,
    WorkersLostError,
)

v1 = tf.compat.v1
pytestmark = pytest.mark.ray


class OwnError(Exception):
    """An error type of the user's."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def raising_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    note(params["folder"], "calls", 1)
    raise OwnError(42)


def test_a_killed_worker_costs_a_restart_and_no_step(on_ray: Callable[..., Any], tmp_path: Path) -> None:
    estimator = on_ray(linear_model_fn, params={}, max_failures=2, save_checkpoints_steps=5)
    estimator.train(endless_input_fn, steps=30, hooks=[partial(AtStep, str(tmp_path), "kill", 17, 1)])
    assert estimator.latest_checkpoint().endswith("-30")
    steps = notes(tmp_path, "steps")[0]
    # Step 17 ended on rank 0 as well or not, then the group went on from the checkpoint of step 15.
    assert steps[:16] == list(range(1, 17))
    assert steps[-15:] == list(range(16, 31))
    # Each group's chief has claimed model_dir under a number of its own.
    writers = sorted(path.name for path in (Path(estimator.model_dir) / ".writers").iterdir())
    assert writers == ["00000001-0001.json", "00000001-0002.json", "00000001.json"]


def test_more_deaths_than_allowed_are_an_error(on_ray: Callable[..., Any], tmp_path: Path) -> None:
    estimator = on_ray(linear_model_fn, params={}, max_failures=0)
    with pytest.raises(WorkersLostError, match="max_failures=0"):
        estimator.train(endless_input_fn, steps=10, hooks=[partial(AtStep, str(tmp_path), "kill", 3, 1)])


def test_an_error_in_model_fn_comes_back_as_itself_once_and_is_not_retried(
    on_ray: Callable[..., Any], tmp_path: Path
) -> None:
    estimator = on_ray(raising_model_fn, params={"folder": str(tmp_path)}, max_failures=3)
    with pytest.raises(OwnError) as caught:
        estimator.train(endless_input_fn, steps=10)
    assert caught.value.code == 42
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("in raising_model_fn") == 1
    assert all(calls == [1] for calls in notes(tmp_path, "calls").values())


def test_an_error_of_one_rank_in_mid_training_ends_the_run_and_outranks_its_waiting_peers(
    on_ray: Callable[..., Any], tmp_path: Path
) -> None:
    estimator = on_ray(linear_model_fn, params={}, max_failures=3)
    with pytest.raises(LookupError, match="the hook's own error") as caught:
        estimator.train(endless_input_fn, steps=10, hooks=[partial(AtStep, str(tmp_path), "raise", 4, 1)])
    assert "Raised on rank 1" in "".join(caught.value.__notes__)
    assert notes(tmp_path, "steps")[1] == [1, 2, 3, 4]


def test_a_group_without_a_place_fails_with_what_it_asked_for_and_what_there_is(on_ray: Callable[..., Any]) -> None:
    estimator = on_ray(linear_model_fn, 2, params={}, resources_per_worker={"CPU": 64}, start_timeout_secs=5)
    began = time.monotonic()
    with pytest.raises(ResourcesTimeoutError) as caught:
        estimator.train(endless_input_fn, steps=10)
    assert time.monotonic() - began < 45
    assert "2 worker(s) of {'CPU': 64" in str(caught.value)
    assert caught.value.cluster["CPU"] == 4.0


def test_a_frozen_worker_is_killed_its_group_goes_on_and_one_that_freezes_again_is_named(
    on_ray: Callable[..., Any], tmp_path: Path
) -> None:
    estimator = on_ray(linear_model_fn, params={}, step_timeout_secs=8, max_failures=1, save_checkpoints_steps=5)
    hooks = [partial(AtStep, str(tmp_path), what, step, 1) for what, step in (("freeze", 7), ("freeze again", 9))]
    with pytest.raises(StepTimeoutError) as caught:
        estimator.train(endless_input_fn, max_steps=12, hooks=hooks)
    # Each hook notes each step.
    assert notes(tmp_path, "steps")[1][::2] == [*range(1, 8), *range(6, 10)]
    assert set(caught.value.silent) == {1}
    assert set(caught.value.waiting) == {0}
    assert "in a step" in caught.value.waiting[0]


def test_an_interrupt_stops_both_ranks_at_one_step_whose_checkpoint_is_published(
    cluster: Any, on_ray: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    estimator = on_ray(linear_model_fn, params={}, max_failures=3)
    with interrupted_after(tmp_path, 5), pytest.raises(KeyboardInterrupt):
        estimator.train(endless_input_fn, hooks=[partial(AtStep, str(tmp_path), "never", -1, 0)])
    wait_until(lambda: cluster.available_resources().get("CPU") == 4.0)
    steps = notes(tmp_path, "steps")
    last = len(steps[0])
    assert steps[0] == steps[1] == list(range(1, last + 1))
    assert estimator.latest_checkpoint().endswith(f"-{last}")
    assert f"SIGINT: stopped at step {last}; the checkpoint of step {last} is published" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_a_worker_cannot_follow_ends_the_run_in_time_and_frees_what_it_held(
    cluster: Any, on_ray: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    estimator = on_ray(linear_model_fn, params={}, max_failures=3, save_checkpoints_steps=2, stop_timeout_secs=2)
    with interrupted_after(tmp_path, 4), pytest.raises(KeyboardInterrupt):
        estimator.train(endless_input_fn, hooks=[partial(AtStep, str(tmp_path), "freeze", 5, 1)])
    wait_until(lambda: cluster.available_resources().get("CPU") == 4.0)
    assert "Training did not stop within stop_timeout_secs=2 seconds" in caplog.text
    assert estimator.latest_checkpoint().endswith("-4")


@contextlib.contextmanager
def interrupted_after(folder: Path, steps: int) -> Iterator[None]:
    """Sends SIGINT to the main thread once rank 0 has made more steps than these."""

    def interrupt() -> None:
        wait_until(lambda: len(notes(folder, "steps").get(0, [])) > steps)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    yield
    thread.join()


def wait_until(condition: Callable[[], bool], timeout_secs: float = 60) -> None:
    deadline = time.monotonic() + timeout_secs
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
def test_training_leaves_a_node_that_is_going_away_in_time_and_survives_the_loss_of_another(tmp_path: Path) -> None:
    program, tests = Path(__file__).with_name("leaving_nodes_program.py"), Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests), *sys.path])
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": path}
    ended = subprocess.run(
        [sys.executable, program, tmp_path], env=environment, capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stderr[-4000:]

    first, second, third, error, checkpoint = json.loads(ended.stdout.splitlines()[-1])
    # After the notice not one step was made twice, nor was a failure counted: the loss was the one that is allowed.
    assert first == list(range(1, len(first) + 1))
    assert second == list(range(first[-1] + 1, second[-1] + 1))
    newest = second[-1] - (second[-1] - first[-1]) % 50
    assert third == list(range(newest + 1, third[-1] + 1))
    assert error.startswith("TrainingError(\"The driver's own node is going away. Training has stopped at step")
    assert checkpoint.endswith(f"-{third[-1]}")
    assert "restart 1: the node of rank 0, 1 is going away" in ended.stderr


def test_a_module_that_workers_cannot_import_is_named(
    on_ray: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_on_the_driver.py").write_text(
        "from support.models import linear_model_fn\n"
        "def model_fn(features, labels, mode, params):\n"
        "    return linear_model_fn(features, labels, mode, params)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import only_on_the_driver

    estimator = on_ray(only_on_the_driver.model_fn, 1, params={})
    with pytest.raises(ModuleNotShippedError, match="only_on_the_driver") as caught:
        estimator.train(endless_input_fn, steps=1)
    assert "working_dir" in str(caught.value)
    assert "register_pickle_by_value(only_on_the_driver)" in str(caught.value)


def test_an_error_in_a_task_comes_back_as_itself(on_ray: Callable[..., Any], tmp_path: Path) -> None:
    estimator = on_ray(raising_model_fn, params={"folder": str(tmp_path)})
    with pytest.raises(OwnError) as caught:
        estimator.evaluate(lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(8), allow_untrained=True)
    assert caught.value.code == 42
    assert "in raising_model_fn" in "".join(caught.value.__notes__)
