"""Estimator.evaluate: results, event files, and ranges of rows that give the same results as a single pass."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from ray.train import ScalingConfig
from support.models import NUM_ROWS, X, Y, endless_input_fn, linear_model_fn, one_pass_input_fn

from ray_estimator import EstimatorSpec, RunConfig
from ray_estimator._checkpoints.store import Checkpoint, CheckpointStore
from ray_estimator._data.columns import column_specs
from ray_estimator._engine import evaluate
from ray_estimator._jobs.jobs import EvaluateJob, RowSpec
from ray_estimator._jobs.metric_state import MetricState, merged
from ray_estimator._jobs.serialization import InPlace, pack
from ray_estimator._jobs.worker import Tables
from ray_estimator._storage.storage import Storage

MakeEstimator = Callable[..., Any]
BATCH = 32
STATE = [v1.GraphKeys.LOCAL_VARIABLES, v1.GraphKeys.METRIC_VARIABLES]


def spec_of(mode: str, **fields: Any) -> EstimatorSpec:
    """A spec with a constant loss, for tests of other things."""
    return EstimatorSpec(mode, **{"loss": tf.constant(1.0), "predictions": tf.constant([1.0]), **fields})


def state_variable(value: Any, name: str) -> Any:
    return v1.Variable(value, trainable=False, collections=STATE, name=name)


def running_sum(value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A custom metric that sums `value`."""
    total = state_variable(tf.zeros(value.shape, value.dtype), "running_sum")
    return tf.identity(total), v1.assign_add(total, value)


def highest(value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A custom metric that cannot be merged."""
    maximum = state_variable(0.0, "highest")
    return tf.identity(maximum), v1.assign(maximum, tf.maximum(maximum, tf.reduce_max(value)))


def events_in(folder: str) -> list[Any]:
    """The events with a summary, as TensorBoard reads them."""
    events = [e for path in sorted(Path(folder).glob("*tfevents*")) for e in v1.train.summary_iterator(str(path))]
    return [event for event in events if event.HasField("summary")]


def written_values(folder: str) -> dict[str, Any]:
    """The values of the single event in `folder`, by tag."""
    (event,) = events_in(folder)
    return {value.tag: value for value in event.summary.value}


class Note(v1.train.SessionRunHook):
    """Records the calls of its methods."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def begin(self) -> None:
        self.notes.append(f"{self.name} begins")

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self.notes.append(f"{self.name} {'sees the stop' if run_context.stop_requested else 'goes on'}")

    def end(self, session: Any) -> None:
        self.notes.append(f"{self.name} ends")


# 1. How far it goes


@pytest.mark.parametrize("steps", [0, -1])
def test_a5_1_steps_must_be_positive(in_process: MakeEstimator, steps: int) -> None:
    with pytest.raises(ValueError, match=f"Must specify steps > 0, got {steps}"):
        in_process(linear_model_fn, params={}).evaluate(one_pass_input_fn, steps=steps)


@pytest.mark.parametrize(("steps", "num_rows"), [(None, NUM_ROWS), (3, 3 * BATCH), (1000, NUM_ROWS)])
def test_a5_1_steps_count_batches_and_none_means_all(
    in_process: MakeEstimator, steps: int | None, num_rows: int
) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return spec_of(mode, eval_metric_ops={"rows": running_sum(tf.shape(features)[0])})

    result = in_process(model_fn).evaluate(one_pass_input_fn, steps=steps, allow_untrained=True)

    assert result["rows"] == num_rows


# 2. The result


def test_a5_2_loss_is_the_mean_over_batches_whatever_their_size(in_process: MakeEstimator) -> None:
    def ragged_input_fn() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices((X[:50], Y[:50])).batch(40)

    errors = np.square(X[:50].sum(axis=1, keepdims=True) - Y[:50])

    result = in_process(linear_model_fn, params={}).evaluate(ragged_input_fn, allow_untrained=True)

    assert result["loss"] == pytest.approx((errors[:40].mean() + errors[40:].mean()) / 2, rel=1e-5)


def test_a5_2_the_result_has_every_metric_the_loss_and_the_step_of_the_checkpoint(in_process: MakeEstimator) -> None:
    estimator = in_process(linear_model_fn, params={}).train(endless_input_fn, steps=7)

    result = estimator.evaluate(one_pass_input_fn)

    assert set(result) == {"mae", "loss", "global_step"}
    assert result["global_step"] == 7
    assert all(isinstance(value, np.number | float | int) for value in result.values())


@pytest.mark.parametrize("name", ["loss", "global_step"])
def test_a5_2_a_metric_named_like_a_metric_of_the_estimator_is_refused(in_process: MakeEstimator, name: str) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return spec_of(mode, eval_metric_ops={name: v1.metrics.mean(labels)})

    with pytest.raises(ValueError, match=f'Metric with name "{name}" is not allowed, because Estimator already'):
        in_process(model_fn).evaluate(one_pass_input_fn, allow_untrained=True)


# 3. What runs


def test_a5_3_updates_run_once_for_each_batch_and_values_once_at_the_end(in_process: MakeEstimator) -> None:
    notes: list[str] = []

    def noted(word: str, value: tf.Tensor) -> tf.Tensor:
        def note(given: Any) -> Any:
            notes.append(word)
            return given

        result = tf.numpy_function(note, [value], value.dtype)
        result.set_shape(value.shape)
        return result

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        value, update = running_sum(tf.reduce_sum(labels))
        return spec_of(mode, eval_metric_ops={"sum": (noted("value", value), noted("update", update))})

    result = in_process(model_fn).evaluate(one_pass_input_fn, allow_untrained=True)

    assert notes == ["update"] * (NUM_ROWS // BATCH) + ["value"]
    assert result["sum"] == pytest.approx(Y.sum(), rel=1e-5)


def test_a5_3_evaluation_trains_nothing_and_writes_no_checkpoint(in_process: MakeEstimator) -> None:
    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        spec = linear_model_fn(features, labels, "train", params)
        return EstimatorSpec(mode, loss=spec.loss, train_op=spec.train_op, predictions=features)

    estimator = in_process(model_fn, params={}).train(endless_input_fn, steps=3)
    before = {path: path.stat().st_mtime_ns for path in Path(estimator.model_dir).iterdir() if path.is_file()}

    first = estimator.evaluate(one_pass_input_fn)
    second = estimator.evaluate(one_pass_input_fn)

    assert first == second
    assert {path: path.stat().st_mtime_ns for path in Path(estimator.model_dir).iterdir() if path.is_file()} == before


# 4. Which checkpoint, and where events go


def test_a5_4_an_explicit_checkpoint_goes_before_the_newest(in_process: MakeEstimator) -> None:
    estimator = in_process(linear_model_fn, params={})
    first = estimator.train(endless_input_fn, steps=2).latest_checkpoint()
    estimator.train(endless_input_fn, steps=40)

    old, new = (estimator.evaluate(one_pass_input_fn, checkpoint_path=path) for path in (first, None))

    assert (old["global_step"], new["global_step"]) == (2, 42)
    assert old["loss"] > new["loss"]


@pytest.mark.parametrize(("name", "folder"), [(None, "eval"), ("test", "eval_test")])
def test_a5_4_events_go_to_the_directory_of_the_name(in_process: MakeEstimator, name: str | None, folder: str) -> None:
    estimator = in_process(linear_model_fn, params={})

    estimator.evaluate(one_pass_input_fn, name=name, allow_untrained=True)

    assert estimator.eval_dir(name) == f"{estimator.model_dir}/{folder}"
    assert len(events_in(estimator.eval_dir(name))) == 1


# 5. What is written and logged


def metrics_of_every_kind(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    done = tf.no_op()
    summary = v1.summary.merge([v1.summary.scalar("first", 1.5), v1.summary.scalar("second", 2.5)])
    return spec_of(
        mode,
        eval_metric_ops={
            "float": (tf.constant(0.5), done),
            "int": (tf.constant(7), done),
            "vector": (tf.constant([1.0, 2.0]), done),
            "summary": (summary, done),
            "nested": ((tf.constant(1.0), tf.constant(2.0)), done),
            "text": (tf.constant(b"\xff no summary"), done),
        },
    )


def test_a5_5_values_are_written_by_their_kind(in_process: MakeEstimator) -> None:
    estimator = in_process(metrics_of_every_kind)

    estimator.evaluate(one_pass_input_fn, allow_untrained=True)

    values = written_values(estimator.eval_dir())
    assert values["float"].simple_value == 0.5
    assert values["int"].simple_value == 7
    assert values["loss"].simple_value == 1
    assert tf.make_ndarray(values["vector"].tensor).tolist() == [1.0, 2.0]
    assert [values[f"summary/{number}"].simple_value for number in (0, 1)] == [1.5, 2.5]


def test_a5_5_other_kinds_are_left_out_with_a_warning(
    in_process: MakeEstimator, caplog: pytest.LogCaptureFixture
) -> None:
    estimator = in_process(metrics_of_every_kind)

    result = estimator.evaluate(one_pass_input_fn, allow_untrained=True)

    assert result["nested"] == (1.0, 2.0)
    assert not {"nested", "text", "global_step"} & set(written_values(estimator.eval_dir()))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("Skipping summary for nested, must be a float" in warning for warning in warnings)
    assert any("Skipping summary for text, cannot parse string to Summary" in warning for warning in warnings)


def test_a5_5_the_event_has_the_step_and_the_path_of_the_checkpoint(in_process: MakeEstimator) -> None:
    estimator = in_process(linear_model_fn, params={}).train(endless_input_fn, steps=5)

    result = estimator.evaluate(one_pass_input_fn)

    (event,) = events_in(estimator.eval_dir())
    values = written_values(estimator.eval_dir())
    assert event.step == 5
    assert values["mae"].simple_value == pytest.approx(result["mae"])
    assert tf.make_ndarray(values["checkpoint_path"].tensor).item().decode() == estimator.latest_checkpoint()


def test_a5_5_the_results_are_logged_in_the_order_of_their_names(
    in_process: MakeEstimator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ray_estimator")
    estimator = in_process(linear_model_fn, params={})

    result = estimator.evaluate(one_pass_input_fn, allow_untrained=True)

    expected = f"global_step = 0, loss = {result['loss']}, mae = {result['mae']}"
    assert f"Saving dict for global step 0: {expected}" in [record.getMessage() for record in caplog.records]


def test_a5_5_events_reach_a_remote_model_dir(in_process: MakeEstimator, tmp_path: Path) -> None:
    estimator = in_process(linear_model_fn, params={}, model_dir="memory://a5-events/model")

    estimator.evaluate(one_pass_input_fn, name="far", allow_untrained=True)

    Storage().get_dir("memory://a5-events/model/eval_far", str(tmp_path / "copy"))
    assert "mae" in written_values(str(tmp_path / "copy"))


# 6. Hooks and initialisation


def test_a5_6_hooks_run_in_order_the_users_before_the_stop_and_those_of_the_spec_after(
    in_process: MakeEstimator,
) -> None:
    notes: list[str] = []

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return spec_of(mode, evaluation_hooks=[Note("spec's", notes)])

    in_process(model_fn).evaluate(one_pass_input_fn, steps=2, hooks=[Note("user's", notes)], allow_untrained=True)

    assert notes == [
        *("user's begins", "spec's begins"),
        *("user's goes on", "spec's goes on"),
        *("user's goes on", "spec's sees the stop"),
        *("user's ends", "spec's ends"),
    ]


def test_a5_6_the_input_is_ready_when_the_users_hooks_see_the_session(in_process: MakeEstimator) -> None:
    seen: list[Any] = []

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        v1.add_to_collection("rows", features)
        return spec_of(mode)

    class ReadOneBatch(v1.train.SessionRunHook):
        def after_create_session(self, session: Any, coord: Any) -> None:
            seen.append(session.run(session.graph.get_collection("rows")[0]))

    in_process(model_fn).evaluate(one_pass_input_fn, hooks=[ReadOneBatch()], allow_untrained=True)

    np.testing.assert_array_equal(seen[0], X[:BATCH])


def model_with_a_local_init_op(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    mark = state_variable(1.0, "mark")
    with tf.control_dependencies([mark.initializer]):
        scaffold = v1.train.Scaffold(local_init_op=tf.group(v1.assign(mark, 5.0)))
    rows = running_sum(tf.shape(features["x"] if isinstance(features, dict) else features)[0])
    return spec_of(mode, scaffold=scaffold, eval_metric_ops={"rows": rows, "mark": (tf.identity(mark), tf.no_op())})


def test_a5_6_a_local_init_op_of_the_scaffold_runs_beside_the_default_one(in_process: MakeEstimator) -> None:
    result = in_process(model_with_a_local_init_op).evaluate(one_pass_input_fn, steps=2, allow_untrained=True)

    assert (result["rows"], result["mark"]) == (2 * BATCH, 5.0)


# 7. Ranges of rows

NUM_CLASSES = 3
ROWS_OF_A_BATCH = 8
FEATURES = ("x", "weight", "guess")
_rng = np.random.default_rng(11)
TABLE = pa.table(
    {
        "x": _rng.random(103, np.float32),
        "weight": _rng.random(103, np.float32) + 0.5,
        "guess": _rng.integers(0, NUM_CLASSES, 103),
        "label": _rng.integers(0, NUM_CLASSES, 103),
    }
)


def job_of(
    model_fn: Callable[..., Any], model_dir: Path, checkpoint: Checkpoint | None = None, code: Any = None
) -> EvaluateJob:
    """The job that the driver sends for an evaluation of `TABLE`."""
    config = RunConfig(scaling_config=ScalingConfig(num_workers=0), model_dir=str(model_dir))
    rows = RowSpec(
        features=column_specs(TABLE.schema, FEATURES),
        labels=column_specs(TABLE.schema, ["label"]),
        single_label=True,
        batch_size=ROWS_OF_A_BATCH,
    )
    code = code or pack({"model_fn": model_fn, "params": {}})
    return EvaluateJob(code, config, str(model_dir), rows, checkpoint=checkpoint, name="test")


def all_rows() -> Any:
    return iter([TABLE])


def ranges_of(table: pa.Table, num_ranges: int) -> list[Tables]:
    """Split `table` into ranges of whole batches, as even as possible."""
    num_batches = -(-table.num_rows // ROWS_OF_A_BATCH)
    cuts = [num_batches * number // num_ranges * ROWS_OF_A_BATCH for number in range(num_ranges + 1)]
    parts = [table.slice(start, stop - start) for start, stop in itertools.pairwise(cuts)]
    return [lambda part=part: iter([part]) for part in parts]  # type: ignore[misc]


def states_of(job: EvaluateJob, num_ranges: int) -> list[MetricState]:
    ranges = ranges_of(TABLE, num_ranges)
    return [evaluate.accumulate(job, tables) for tables in ranges]


def fanned_out(job: EvaluateJob, num_ranges: int) -> dict[str, Any]:
    states = states_of(job, num_ranges)
    assert [state.unmergeable for state in states] == [None] * num_ranges
    return evaluate.finish(job, merged(states))


def assert_same_results(result: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(result) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def v1_metrics_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    """Every mergeable metric of TensorFlow 1. The loss differs from batch to batch."""
    x, weight, guess = (features[name] for name in FEATURES)
    positive = labels > 0
    scale = v1.get_variable("scale", [], initializer=v1.constant_initializer(0.75))
    score = tf.sigmoid(scale * (x - 0.4) * 5)
    metrics = {
        "accuracy": v1.metrics.accuracy(labels, guess, weights=weight),
        "auc": v1.metrics.auc(positive, score, num_thresholds=50),
        "mean": v1.metrics.mean(score, weights=weight),
        "precision": v1.metrics.precision(positive, score > 0.5),
        "recall": v1.metrics.recall(positive, score > 0.5),
        "mean_iou": v1.metrics.mean_iou(labels, guess, NUM_CLASSES),
        "rmse": v1.metrics.root_mean_squared_error(tf.cast(positive, tf.float32), score),
        "mean_per_class_accuracy": v1.metrics.mean_per_class_accuracy(labels, guess, NUM_CLASSES),
    }
    train_op = v1.assign_add(v1.train.get_global_step(), 1)
    loss = tf.reduce_mean(tf.square(score - tf.cast(positive, tf.float32)))
    return EstimatorSpec(mode, loss=loss, train_op=train_op, eval_metric_ops=metrics)


def keras_metrics_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    score = features["x"]
    positive = tf.cast(labels > 0, tf.float32)
    metrics = {
        "accuracy": keras.metrics.BinaryAccuracy(),
        "auc": keras.metrics.AUC(num_thresholds=50),
        "precision": keras.metrics.Precision(),
        "rmse": keras.metrics.RootMeanSquaredError(),
        "mean_iou": keras.metrics.BinaryIoU(),
    }
    for metric in metrics.values():
        metric.update_state(positive, score)
    mean = keras.metrics.Mean()
    mean.update_state(score, sample_weight=features["weight"])
    loss = tf.reduce_mean(tf.square(score - positive))
    return EstimatorSpec(mode, loss=loss, eval_metric_ops={**metrics, "mean": mean})


@pytest.mark.parametrize("num_ranges", [1, 2, 3, 7])
@pytest.mark.parametrize("model_fn", [v1_metrics_model_fn, keras_metrics_model_fn])
def test_a5_7_ranges_give_the_numbers_of_a_single_pass(
    tmp_path: Path, model_fn: Callable[..., Any], num_ranges: int
) -> None:
    job = job_of(model_fn, tmp_path)

    assert_same_results(fanned_out(job, num_ranges), evaluate.run(job, all_rows))


def test_a5_7_the_rows_stay_what_they_are(tmp_path: Path) -> None:
    # In memory of Arrow's own, aligned so that TensorFlow shares it.
    table = TABLE.take(pa.array(range(TABLE.num_rows)))
    before = table.to_pydict()

    evaluate.run(job_of(v1_metrics_model_fn, tmp_path), lambda: iter([table]))

    assert table.to_pydict() == before


def test_a5_7_the_single_pass_itself_is_right(tmp_path: Path) -> None:
    result = evaluate.run(job_of(v1_metrics_model_fn, tmp_path), all_rows)

    columns = {name: TABLE[name].to_numpy() for name in TABLE.column_names}
    score = 1 / (1 + np.exp(-0.75 * (columns["x"] - 0.4) * 5))
    errors = np.square(score - (columns["label"] > 0))
    losses = [errors[start : start + ROWS_OF_A_BATCH].mean() for start in range(0, len(errors), ROWS_OF_A_BATCH)]
    assert len(losses[-1:]) == 1
    assert len(errors) % ROWS_OF_A_BATCH != 0
    assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert result["rmse"] == pytest.approx(np.sqrt(errors.mean()), rel=1e-5)
    right = columns["label"] == columns["guess"]
    assert result["accuracy"] == pytest.approx(np.average(right, weights=columns["weight"]), rel=1e-5)


def test_a5_7_ranges_evaluate_the_checkpoint_and_write_its_event(in_process: MakeEstimator, tmp_path: Path) -> None:
    def input_fn() -> tf.data.Dataset:
        columns = {name: TABLE[name].to_numpy() for name in TABLE.column_names}
        labels = columns.pop("label")
        return tf.data.Dataset.from_tensor_slices((columns, labels)).repeat().batch(ROWS_OF_A_BATCH)

    in_process(v1_metrics_model_fn, model_dir=tmp_path / "model").train(input_fn, steps=4)
    checkpoint = CheckpointStore(str(tmp_path / "model"), Storage()).latest()
    job = job_of(v1_metrics_model_fn, tmp_path / "model", checkpoint)

    result = fanned_out(job, 3)

    assert result["global_step"] == 4
    (event,) = events_in(str(tmp_path / "model" / "eval_test"))
    assert event.step == 4


def unadditive_fields(kind: str, features: Any, labels: Any) -> dict[str, Any]:
    if kind == "value of a batch":
        return {"eval_metric_ops": {"odd": (tf.reduce_mean(features["x"]), tf.no_op())}}
    if kind == "maximum":
        return {"eval_metric_ops": {"odd": highest(features["x"])}}
    if kind == "hooks":
        return {"evaluation_hooks": [Note("spec's", [])]}
    moving = v1.get_variable("moving", [], trainable=False, initializer=v1.zeros_initializer())
    return {"eval_metric_ops": {"odd": (tf.identity(moving), v1.assign(moving, tf.reduce_mean(features["x"])))}}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("value of a batch", "the value of the metric 'odd' depends on tensors of a batch"),
        ("maximum", "an update does more than add to the metric variable 'highest'"),
        ("hooks", "model_fn returned evaluation_hooks"),
        ("write elsewhere", "an update writes 'moving', which is not a metric variable"),
    ],
)
def test_a5_7_what_does_not_add_up_is_named(tmp_path: Path, kind: str, reason: str) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return spec_of(mode, **unadditive_fields(kind, features, labels))

    assert states_of(job_of(model_fn, tmp_path), 2)[0].unmergeable == reason


def own_sum_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    return spec_of(mode, eval_metric_ops={"rows": running_sum(tf.shape(labels)[0])})


def test_a5_7_a_users_own_metric_that_adds_up_is_merged(tmp_path: Path) -> None:
    assert fanned_out(job_of(own_sum_model_fn, tmp_path), 3)["rows"] == TABLE.num_rows


def reference_variable_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    total = v1.Variable(0, trainable=False, collections=STATE, use_resource=False, name="total")
    return spec_of(mode, eval_metric_ops={"rows": (tf.identity(total), v1.assign_add(total, tf.shape(labels)[0]))})


def test_a5_7_reference_variables_are_merged_like_resources(tmp_path: Path) -> None:
    assert fanned_out(job_of(reference_variable_model_fn, tmp_path), 3)["rows"] == TABLE.num_rows


def test_a5_7_a_state_that_never_changes_does_not_stand_in_the_way(tmp_path: Path) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        name, flag = state_variable("reference", "name"), state_variable(True, "flag")
        metrics = {"name": (tf.strings.length(name), tf.no_op()), "flag": (tf.identity(flag), tf.no_op())}
        return spec_of(mode, eval_metric_ops=metrics)

    result = fanned_out(job_of(model_fn, tmp_path), 2)

    assert (result["name"], result["flag"]) == (len("reference"), True)


def test_a5_7_a_local_init_op_of_the_scaffold_runs_for_ranges_too(tmp_path: Path) -> None:
    assert fanned_out(job_of(model_with_a_local_init_op, tmp_path), 2)["rows"] == TABLE.num_rows


def constant_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    return spec_of(mode, loss=tf.constant(params["loss"]) + 0 * tf.reduce_sum(features["x"]))


def test_a5_7_a_warm_graph_is_kept_for_the_same_code_only(tmp_path: Path) -> None:
    def evaluated(loss: float, pack_parts: Callable[[Any], Any]) -> float:
        code = pack_parts({"model_fn": constant_model_fn, "params": {"loss": loss}})
        return float(fanned_out(job_of(constant_model_fn, tmp_path, code=code), 2)["loss"])

    for pack_parts in (InPlace, pack):
        assert [evaluated(loss, pack_parts) for loss in (1.0, 2.0)] == [1.0, 2.0]


def test_a5_7_the_graph_is_built_once_for_all_ranges(tmp_path: Path) -> None:
    builds = tmp_path / "builds"

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        with builds.open("a") as file:
            file.write("x")
        return spec_of(mode)

    fanned_out(job_of(model_fn, tmp_path), 7)

    assert builds.read_text() == "x"


def weight_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
    train_op = tf.group(v1.assign_add(weight, 1.0), v1.assign_add(v1.train.get_global_step(), 1))
    return spec_of(mode, loss=weight + 0 * tf.reduce_sum(features["x"]), train_op=train_op)


def train_weight(model_dir: Path, by: float) -> Checkpoint:
    """Save step 1 with another weight, under the same name."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.create_global_step()
        v1.get_variable("weight", [], initializer=v1.constant_initializer(by))
        session.run(v1.global_variables_initializer())
        session.run(v1.assign(v1.train.get_global_step(), 1))
        v1.train.Saver().save(session, str(model_dir / "model.ckpt"), global_step=1)
    return Checkpoint(str(model_dir / "model.ckpt-1"), 1)


def test_a5_7_a_model_dir_that_was_begun_anew_gets_a_new_graph(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), Storage())
    losses = []
    for weight in (3.0, 4.0):
        checkpoint = train_weight(tmp_path, weight)
        job = job_of(weight_model_fn, tmp_path, checkpoint)
        job = EvaluateJob(**{**vars(job), "fingerprint": store.fingerprint(checkpoint)})
        losses.append(fanned_out(job, 2)["loss"])

    assert losses == [3.0, 4.0]


def test_a5_7_the_order_of_states_does_not_matter(tmp_path: Path) -> None:
    job = job_of(v1_metrics_model_fn, tmp_path)
    states: Sequence[MetricState] = states_of(job, 3)

    assert_same_results(evaluate.finish(job, merged(states[::-1])), evaluate.finish(job, merged(states)))
