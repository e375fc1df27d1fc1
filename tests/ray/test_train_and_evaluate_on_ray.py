"""`train_and_evaluate` with workers: one training, evaluated beside it from the driver."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tensorflow as tf
from support.models import X, Y, endless_input_fn, linear_model_fn, one_pass_input_fn
from support.probes import note, notes

from ray_estimator import (
    BestExporter,
    EvalSpec,
    Exporter,
    FinalExporter,
    TrainSpec,
    dataset_input_fn,
    export,
    train_and_evaluate,
    training,
)
from ray_estimator.experimental import (
    InMemoryEvaluatorHook,
    make_early_stopping_hook,
    read_eval_metrics,
    stop_if_lower_hook,
)

v1 = tf.compat.v1
pytestmark = pytest.mark.ray

RECEIVER = export.build_raw_serving_input_receiver_fn({"x": tf.TensorSpec([None, 4], tf.float32)})
DEADLINE_SECS = 100.0


class GoOnWhen(v1.train.SessionRunHook):
    """Lets no rank go beyond `step` until a file is there: training then waits for what happens beside it."""

    def __init__(self, step: int, folder: str, pattern: str) -> None:
        self._step = step
        self._folder = folder
        self._pattern = pattern

    def after_run(self, run_context: Any, run_values: Any) -> None:
        step = int(run_context.session.run(v1.train.get_global_step()))
        note(self._folder, "steps", step)
        deadline = time.monotonic() + DEADLINE_SECS
        while step >= self._step and not list(Path(self._folder).glob(self._pattern)):
            if time.monotonic() > deadline:
                note(self._folder, "waited_in_vain", step)
                raise TimeoutError(f"nothing like {self._pattern} came")
            time.sleep(0.02)


class Raising(Exporter):
    """Raises at its first call."""

    name = "raising"

    def export(self, **arguments: Any) -> None:  # type: ignore[override]
        raise LookupError("the exporter's own error")


def note_that_asked(folder: str) -> bool:
    note(folder, "asked", 1)
    return False


def beside(**changes: Any) -> EvalSpec:
    at_once = {"steps": None, "throttle_secs": 0, "start_delay_secs": 0}
    return EvalSpec(**{"input_fn": one_pass_input_fn, **at_once, **changes})


def dataset_input(ray: Any) -> Any:
    """The rows of `one_pass_input_fn` as a Ray Dataset."""
    x = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), X.shape[1])
    dataset = ray.data.from_arrow(pa.table({"x": x, "y": Y[:, 0]})).materialize()
    return dataset_input_fn(dataset, batch_size=32, label_columns="y", map_fn=lambda x, y: (x, y[:, tf.newaxis]))


def test_evaluations_and_exports_happen_while_two_workers_train_once(
    on_ray: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    estimator = on_ray(linear_model_fn, 2, params={}, save_checkpoints_steps=5, keep_checkpoint_max=None)
    # What this waits for is written by the driver after it has evaluated step 5 or 10, of which training knows nothing.
    exported = partial(GoOnWhen, 12, str(tmp_path), "model/export/best_exporter/*/saved_model.pb")
    exporters = [BestExporter(serving_input_receiver_fn=RECEIVER), FinalExporter("final", RECEIVER)]

    metrics, exports = train_and_evaluate(
        estimator, TrainSpec(endless_input_fn, max_steps=20, hooks=[exported]), beside(exporters=exporters)
    )

    evaluated = list(read_eval_metrics(estimator.eval_dir()))
    assert evaluated[0] in (5, 10)
    assert evaluated[-1] == 20
    assert metrics is not None
    assert metrics == estimator.evaluate(one_pass_input_fn)
    assert [Path(path).parent.name for path in exports] == ["best_exporter", "final"]
    # One training: each rank made each step once.
    assert notes(tmp_path, "steps") == {0: list(range(1, 21)), 1: list(range(1, 21))}
    assert caplog.text.count("EvalSpec.throttle_secs is 0") == 1


def test_an_early_stop_ends_both_workers_and_the_loop(cluster: Any, on_ray: Callable[..., Any], tmp_path: Path) -> None:
    input_fn = dataset_input(cluster)
    estimator = on_ray(linear_model_fn, 2, params={}, save_checkpoints_steps=5)
    evaluated = partial(GoOnWhen, 7, str(tmp_path), "model/eval/*.tfevents.*")
    stop = stop_if_lower_hook(estimator, "loss", 1e9, run_every_secs=None, run_every_steps=2)
    never = make_early_stopping_hook(estimator, partial(note_that_asked, str(tmp_path)), None, run_every_steps=2)

    metrics, exports = train_and_evaluate(
        estimator,
        TrainSpec(input_fn, max_steps=100_000, hooks=[evaluated, stop, never]),
        beside(input_fn=input_fn, exporters=FinalExporter("final", RECEIVER)),
    )

    steps = notes(tmp_path, "steps")
    assert steps[0] == steps[1]
    # Evaluated before step 8; asked every other step on the chief; all learn of it in the step after.
    assert 7 <= steps[0][-1] <= 10
    assert metrics is not None
    assert metrics["global_step"] == steps[0][-1]
    assert exports == [None]
    assert notes(tmp_path, "asked").keys() == {0}


def test_a_signal_stops_the_training_beside_with_a_checkpoint_and_nothing_is_evaluated(
    on_ray: Callable[..., Any], tmp_path: Path
) -> None:
    estimator = on_ray(linear_model_fn, 2, params={})
    noted = partial(GoOnWhen, 10**9, str(tmp_path), "never")

    def terminate() -> None:
        deadline = time.monotonic() + DEADLINE_SECS
        while len(notes(tmp_path, "steps").get(0, [])) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(SystemExit) as caught:
        train_and_evaluate(estimator, TrainSpec(endless_input_fn, hooks=[noted]), beside(start_delay_secs=1e6))
    thread.join()

    assert caught.value.code == 143
    steps = notes(tmp_path, "steps")
    assert steps[0] == steps[1]
    assert estimator.latest_checkpoint().endswith(f"-{steps[0][-1]}")
    assert not read_eval_metrics(estimator.eval_dir())


def test_where_training_takes_every_cpu_evaluations_wait_and_the_last_is_made(
    cluster: Any, on_ray: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = cluster.cluster_resources()["CPU"]
    estimator = on_ray(linear_model_fn, 1, params={}, save_checkpoints_steps=5, resources_per_worker={"CPU": cpus})

    def touch(message: str, *arguments: Any) -> None:
        if "waits, because the training group leaves no free" in message:
            (tmp_path / "said").touch()

    monkeypatch.setattr(training.logger, "warning", touch)
    # Training goes on only after the driver has looked, found a checkpoint, and had no room to evaluate it.
    said = partial(GoOnWhen, 7, str(tmp_path), "said")
    metrics, _ = train_and_evaluate(estimator, TrainSpec(endless_input_fn, max_steps=20, hooks=[said]), beside())

    assert metrics is not None
    assert metrics["global_step"] == 20
    assert list(read_eval_metrics(estimator.eval_dir())) == [20]


def test_an_error_of_an_exporter_ends_the_workers(on_ray: Callable[..., Any], tmp_path: Path) -> None:
    estimator = on_ray(linear_model_fn, 1, params={}, save_checkpoints_steps=5, step_timeout_secs=300)
    for_ever = partial(GoOnWhen, 12, str(tmp_path), "never")

    with pytest.raises(LookupError, match="the exporter's own error") as raised:
        train_and_evaluate(estimator, TrainSpec(endless_input_fn, hooks=[for_ever]), beside(exporters=Raising()))

    assert not getattr(raised.value, "__notes__", [])
    assert "training" not in {thread.name for thread in threading.enumerate()}
    assert notes(tmp_path, "waited_in_vain") == {}


def test_an_error_of_training_ends_the_loop(on_ray: Callable[..., Any]) -> None:
    def failing_input_fn() -> tf.data.Dataset:
        raise LookupError("the input's own error")

    estimator = on_ray(linear_model_fn, 1, params={})
    with pytest.raises(LookupError, match="the input's own error"):
        train_and_evaluate(estimator, TrainSpec(failing_input_fn, max_steps=5), beside())


def test_one_worker_evaluates_in_memory(cluster: Any, on_ray: Callable[..., Any]) -> None:
    estimator = on_ray(linear_model_fn, 1, params={}, save_checkpoints_steps=4)
    hook = InMemoryEvaluatorHook(estimator, dataset_input(cluster), name="memory", every_n_iter=4)
    estimator.train(endless_input_fn, steps=6, hooks=[hook])
    found = read_eval_metrics(estimator.eval_dir("memory"))
    assert list(found) == [0, 4, 6]
    expected = estimator.evaluate(one_pass_input_fn)
    assert found[6]["mae"] == pytest.approx(expected["mae"], rel=1e-6)
