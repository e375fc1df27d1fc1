"""Tasks of evaluate, predict and exports: they find a place in time or say why not, and survive their workers."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import tensorflow as tf

from ray_estimator import (
    EstimatorSpec,
    ModeKeys,
    ResourcesTimeoutError,
    TaskLostError,
    TaskTimeoutError,
    dataset_input_fn,
)
from ray_estimator._runtime.tasks import task
from ray_estimator.estimator import job_builder_of

v1 = tf.compat.v1
pytestmark = pytest.mark.ray

NUM_ROWS = 120_000
BATCH = 100
POISON = -7.0


class OwnError(Exception):
    """An error type of the user's."""


def act_on(x: Any, what: str | None) -> Any:
    """Kills the process, hangs, or raises, where a batch holds the row that is poison."""
    if (x == POISON).any():
        if what == "hang":
            threading.Event().wait()
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OwnError("poison")
    return x


def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    x = features["x"]
    if params.get("on_poison") == "raise in the graph":
        raise OwnError("model_fn")
    if params.get("on_poison"):
        x = tf.ensure_shape(tf.numpy_function(lambda x: act_on(x, params["on_poison"]), [x], tf.float32), [None])
    y = tf.math.sin(x) * 3
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"y": y, "id": features["id"]})
    loss = tf.reduce_mean(tf.square(y))
    metrics = {"mean": v1.metrics.mean(y), "rows": v1.metrics.true_positives(y > -10, y > -10)}
    return EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)


@pytest.fixture(scope="module")
def rows(cluster: Any) -> Any:
    x = np.random.default_rng(1).normal(size=NUM_ROWS).astype(np.float32)
    return dataset_of(cluster, x)


def dataset_of(cluster: Any, x: Any) -> Any:
    return cluster.data.from_arrow(pa.table({"x": x, "id": np.arange(len(x))})).repartition(5).materialize()


@pytest.fixture
def input_fn(rows: Any) -> Any:
    return dataset_input_fn(rows, batch_size=BATCH)


# A place


@pytest.mark.parametrize("verb", ["evaluate", "predict", "of another kind"])
def test_a_task_that_never_fits_is_an_error_with_what_it_asked_for_and_what_there_is(
    on_ray: Callable[..., Any], input_fn: Any, tmp_path: Path, verb: str
) -> None:
    estimator = on_ray(model_fn, params={}, task_resources={"CPU": 64, "FPGA": 1}, start_timeout_secs=1)
    act = {
        "evaluate": lambda: estimator.evaluate(input_fn, allow_untrained=True),
        "predict": lambda: next(estimator.predict(input_fn, allow_untrained=True)),
        "of another kind": lambda: job_builder_of(estimator).runtime().run(os.getpid),
    }[verb]
    with pytest.raises(ResourcesTimeoutError) as caught:
        act()
    assert caught.value.asked == [{"CPU": 64, "FPGA": 1}]
    assert caught.value.cluster["CPU"] == 4
    assert "RunConfig(task_resources=...)" in str(caught.value)


class Holder:
    """Holds what training workers would hold."""

    def ready(self) -> bool:
        return True


def test_a_task_that_waits_says_for_what_and_goes_on_when_there_is_room(
    cluster: Any, on_ray: Callable[..., Any], input_fn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = cluster.remote(Holder).options(num_cpus=4).remote()
    cluster.get(holder.ready.remote())
    monkeypatch.setattr(task, "_NOTICE_SECS", 0.2)
    said: list[str] = []

    class LeaveWhenSaid(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            cluster.kill(holder)

    handler = LeaveWhenSaid()
    task.logger.addHandler(handler)
    try:
        result = on_ray(model_fn, params={}).evaluate(input_fn, steps=2, allow_untrained=True)
    finally:
        task.logger.removeHandler(handler)
    assert result["rows"] == 2 * BATCH
    assert said[0].startswith("The evaluation of rows 0 to 199 waits to be scheduled: it requests {'CPU': 1.0}, and {")


def training_model_fn(features: Any, mode: str, params: Any) -> EstimatorSpec:
    """Trains until there is a file at `params`; then the hook asks to stop."""
    weight = v1.get_variable("weight", [])
    loss = tf.square(weight - tf.reduce_mean(features))
    step = v1.train.GradientDescentOptimizer(0.1).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=step, training_hooks=[StopAtFile(params)])


class StopAtFile(v1.train.SessionRunHook):
    def __init__(self, path: str) -> None:
        self._path = path

    def after_run(self, run_context: Any, run_values: Any) -> None:
        Path(self._path + ".trains").touch()
        if Path(self._path).exists():
            run_context.request_stop()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_beside_a_group_that_trains_a_task_runs_where_there_is_room_and_else_says_for_what_it_waits(
    on_ray: Callable[..., Any], input_fn: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    end = tmp_path / "end"
    trains = Path(f"{end}.trains")
    trainer = on_ray(training_model_fn, 2, params=str(end), model_dir=tmp_path / "trained")

    class EndWhenSaid(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            end.touch()

    handler = EndWhenSaid(logging.WARNING)
    training = threading.Thread(target=trainer.train, args=[lambda: tf.data.Dataset.from_tensors([1.0]).repeat()])
    training.start()
    try:
        while not trains.exists():
            assert training.is_alive()
            training.join(0.05)
        beside = on_ray(model_fn, params={}).evaluate(input_fn, steps=2, allow_untrained=True)
        assert beside["rows"] == 2 * BATCH
        task.logger.addHandler(handler)
        # Two of four CPUs are the workers'.
        waiting = on_ray(model_fn, params={}, task_resources={"CPU": 3})
        assert waiting.evaluate(input_fn, steps=2, allow_untrained=True)["rows"] == 2 * BATCH
        assert end.exists()
    finally:
        end.touch()
        task.logger.removeHandler(handler)
        training.join()
    assert "waits to be scheduled: it requests {'CPU': 3}, and {" in caplog.text


# Deaths


class Killer:
    """Kills a process that runs a task, at random moments, so many times."""

    def __init__(self, kills: int) -> None:
        self.left = kills
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._kill)
        self._random = random.Random(7)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _kill(self) -> None:
        while self.left and not self._stop.wait(self._random.uniform(0.0, 4.0)):
            running = list(running_tasks())
            if running:
                self._random.choice(running).kill()
                self.left -= 1


def running_tasks() -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::_run"):
            yield process


@pytest.mark.kills
@pytest.mark.slow
def test_evaluations_survive_sigkills_with_the_same_numbers(
    on_ray: Callable[..., Any], in_process: Callable[..., Any], input_fn: Any, kills: int
) -> None:
    expected = in_process(model_fn, params={}).evaluate(input_fn, allow_untrained=True)
    estimator = on_ray(model_fn, params={})
    with Killer(kills) as killer:
        while killer.left:
            result = estimator.evaluate(input_fn, allow_untrained=True)
            assert result["rows"] == NUM_ROWS
            assert result == pytest.approx(expected, rel=1e-6)


@pytest.mark.kills
@pytest.mark.slow
def test_predictions_survive_sigkills_with_the_same_rows_to_the_bit(
    on_ray: Callable[..., Any], in_process: Callable[..., Any], input_fn: Any, kills: int
) -> None:
    def rows_of(estimator: Any) -> bytes:
        batches = list(estimator.predict(input_fn, yield_single_examples=False, allow_untrained=True))
        return b"".join(np.concatenate([batch[name] for batch in batches]).tobytes() for name in ("id", "y"))

    expected = rows_of(in_process(model_fn, params={}))
    estimator = on_ray(model_fn, params={})
    with Killer(kills) as killer:
        while killer.left:
            assert rows_of(estimator) == expected


@pytest.fixture
def poisoned(cluster: Any) -> Any:
    x = np.zeros(40_000, np.float32)
    x[20_000] = POISON
    return dataset_input_fn(dataset_of(cluster, x), batch_size=BATCH)


def test_a_range_that_kills_its_worker_every_time_is_named(
    on_ray: Callable[..., Any], poisoned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "_TRIES", 2)
    rows = on_ray(model_fn, params={"on_poison": "die"}).predict(poisoned, allow_untrained=True)
    assert [row["id"] for row in itertools.islice(rows, 16_400)] == list(range(16_400))
    with pytest.raises(TaskLostError, match=r"The prediction of rows 16400 to 32799 lost its worker 2 times") as caught:
        next(rows)
    assert caught.value.tries == 2


@pytest.mark.timeout(120)
def test_a_range_that_stands_still_each_time_is_named_with_the_line_where_it_stood(
    on_ray: Callable[..., Any], poisoned: Any
) -> None:
    estimator = on_ray(model_fn, params={"on_poison": "hang"}, step_timeout_secs=4, input_timeout_secs=4)
    rows = estimator.predict(poisoned, allow_untrained=True)
    assert [row["id"] for row in itertools.islice(rows, 16_400)] == list(range(16_400))
    with pytest.raises(
        TaskTimeoutError, match=r"The prediction of rows 16400 to 32799 made no progress for 8 s"
    ) as caught:
        next(rows)
    assert caught.value.tries == 2
    assert "in run" in caught.value.__notes__[0]


@pytest.mark.timeout(120)
def test_an_input_fn_that_stands_still_ends_the_evaluation(on_ray: Callable[..., Any], tmp_path: Path) -> None:
    def input_fn() -> tf.data.Dataset:
        stuck = tf.data.Dataset.range(3).map(
            lambda x: tf.numpy_function(lambda x: threading.Event().wait(), [x], tf.bool)
        )
        return stuck.map(lambda _: {"x": tf.zeros([1]), "id": tf.zeros([1], tf.int64)})

    with pytest.raises(
        TaskTimeoutError, match=r"The evaluation made no progress for 4 s and was killed \(2 attempts\)"
    ):
        on_ray(model_fn, params={}, step_timeout_secs=4).evaluate(input_fn, allow_untrained=True)


def test_who_reads_a_prediction_slowly_ends_nothing(
    on_ray: Callable[..., Any], input_fn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = job_builder_of(on_ray(model_fn, params={})).runtime()
    runtime.connect()
    patience_secs = 1.0
    # More than Ray keeps ahead: the task waits for its reader.
    numbers = runtime._tasks.start("The numbers", count_to, 40, stall_secs=patience_secs)
    assert next(numbers) == 0
    assert not threading.Event().wait(3 * patience_secs)  # the reader looks at the first one
    assert list(numbers) == list(range(1, 40))
    assert numbers._losses == 0


def count_to(end: int) -> Iterator[int]:
    yield from range(end)


@pytest.mark.parametrize("on_poison", ["raise", "raise in the graph"])
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_an_error_of_the_users_comes_back_at_once_as_itself(
    on_ray: Callable[..., Any], poisoned: Any, verb: str, on_poison: str
) -> None:
    estimator = on_ray(model_fn, params={"on_poison": on_poison})
    expected = OwnError if on_poison != "raise" else tf.errors.UnknownError
    with pytest.raises(expected, match=r"poison|model_fn"):
        list(getattr(estimator, verb)(poisoned, allow_untrained=True))


def test_an_export_whose_worker_dies_is_made_again(cluster: Any, on_ray: Callable[..., Any], tmp_path: Path) -> None:
    runtime = job_builder_of(on_ray(model_fn, params={})).runtime()
    runtime.connect()
    assert runtime.run(die_once, str(tmp_path / "died")) == "made"


def die_once(mark: str) -> str:
    try:
        Path(mark).touch(exist_ok=False)
    except FileExistsError:
        return "made"
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def stream(mark: str) -> Iterator[int]:
    for number in range(30):
        if number == 17 and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield number


def test_a_stream_whose_worker_dies_goes_on_where_it_was(on_ray: Callable[..., Any], tmp_path: Path) -> None:
    runtime = job_builder_of(on_ray(model_fn, params={})).runtime()
    runtime.connect()
    assert list(runtime._tasks.start("The stream", stream, str(tmp_path / "died"))) == list(range(30))


def test_tasks_that_are_left_while_they_end_do_no_harm() -> None:
    program = Path(__file__).with_name("left_tasks_program.py")
    done = subprocess.run(
        ["timeout", "-s", "KILL", "180", sys.executable, str(program)], check=False, capture_output=True, text=True
    )
    assert done.stdout.endswith("done\n"), done.stderr[-2000:]


@pytest.mark.slow
def test_training_on_gpus_begins_when_warm_processes_of_tasks_have_let_go_of_theirs(tmp_path: Path) -> None:
    program = Path(__file__).with_name("gpu_reclaim_program.py")
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        ["timeout", "-s", "KILL", "240", sys.executable, str(program), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["trained beside"] == [[]]
    warm, again = dict.fromkeys(seen["evaluated in"])
    assert seen["evaluated in"].count(warm) == 2 * seen["evaluated in"].count(again)
