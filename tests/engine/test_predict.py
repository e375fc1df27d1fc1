"""Estimator.predict: a lazy stream in input order, which may be closed early and interleaved with others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.models import NUM_FEATURES, NUM_ROWS, WEIGHTS, X, linear_model_fn, one_pass_input_fn

from ray_estimator import EstimatorNotTrainedError, EstimatorSpec

MakeEstimator = Callable[..., Any]
BATCH = 32


def predicting(make_predictions: Callable[[Any], Any], **fields: Any) -> Callable[..., EstimatorSpec]:
    """A model_fn for PREDICT only."""

    def model_fn(features: Any, mode: str) -> EstimatorSpec:
        return EstimatorSpec(mode, predictions=make_predictions(features), **fields)

    return model_fn


def features_input_fn() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(X).batch(BATCH)


def predict(estimator: Any, **arguments: Any) -> Any:
    return estimator.predict(features_input_fn, allow_untrained=True, **arguments)


class Note(v1.train.SessionRunHook):
    """Records the calls of its methods, and keeps the session."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes, self.session = name, notes, None

    def begin(self) -> None:
        self.notes.append(f"{self.name} begins")

    def after_create_session(self, session: Any, coord: Any) -> None:
        self.session = session

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self.notes.append(f"{self.name} ran")

    def end(self, session: Any) -> None:
        self.notes.append(f"{self.name} ends")


def assert_closed(session: Any) -> None:
    with pytest.raises(RuntimeError, match="closed"):
        session.run(session.graph.get_operations()[0])


# 1. Laziness


def test_a6_1_nothing_happens_before_the_first_next(in_process: MakeEstimator) -> None:
    calls: list[str] = []

    def input_fn() -> tf.data.Dataset:
        calls.append("input_fn")
        return features_input_fn()

    def model_fn(features: Any, mode: str) -> EstimatorSpec:
        calls.append("model_fn")
        return EstimatorSpec(mode, predictions=features)

    rows = in_process(model_fn).predict(input_fn, allow_untrained=True)
    assert calls == []

    next(rows)
    assert calls == ["input_fn", "model_fn"]


def test_a6_1_errors_wait_for_the_first_next_too(in_process: MakeEstimator) -> None:
    estimator = in_process(linear_model_fn, params={})
    untrained, no_input = estimator.predict(one_pass_input_fn), estimator.predict("no function")

    with pytest.raises(EstimatorNotTrainedError, match="Could not find trained model in model_dir"):
        next(untrained)
    with pytest.raises(TypeError, match="must be a callable"):
        next(no_input)


def test_a6_1_generators_may_interleave(in_process: MakeEstimator) -> None:
    estimator = in_process(linear_model_fn, params={})

    pairs = list(zip(predict(estimator), predict(estimator), strict=True))

    assert len(pairs) == NUM_ROWS
    for row, (first, second) in zip(X, pairs, strict=True):
        np.testing.assert_array_equal(first["x"], row)
        np.testing.assert_array_equal(second["x"], row)


def test_a6_1_other_verbs_and_eager_code_run_between_two_rows(in_process: MakeEstimator) -> None:
    estimator = in_process(linear_model_fn, params={})
    rows = predict(estimator)
    next(rows)

    assert tf.executing_eagerly()
    assert float(tf.constant(2.0) + 1) == 3
    assert estimator.evaluate(one_pass_input_fn, allow_untrained=True)["global_step"] == 0
    assert sum(1 for _ in rows) == NUM_ROWS - 1


# 2. Rows and batches


def test_a6_2_a_tensor_gives_rows(in_process: MakeEstimator) -> None:
    rows = list(predict(in_process(predicting(lambda features: features * 2))))

    np.testing.assert_array_equal(np.stack(rows), X * 2)


def test_a6_2_a_dict_gives_dicts_of_rows(in_process: MakeEstimator) -> None:
    rows = list(predict(in_process(linear_model_fn, params={})))

    assert {frozenset(row) for row in rows} == {frozenset({"x", "y"})}
    np.testing.assert_allclose(np.stack([row["y"] for row in rows]), X.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_a6_2_whole_batches_come_as_model_fn_returned_them(in_process: MakeEstimator) -> None:
    model_fn = predicting(lambda features: {"x": features, "shape": tf.shape(features)})

    batches = list(predict(in_process(model_fn), yield_single_examples=False))

    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), X)
    assert [batch["shape"].tolist() for batch in batches] == [[BATCH, NUM_FEATURES]] * (NUM_ROWS // BATCH)


# 3. Lengths


def test_a6_3_rows_need_predictions_of_one_length(in_process: MakeEstimator) -> None:
    model_fn = predicting(lambda features: {"x": features, "half": features[: BATCH // 2]})

    with pytest.raises(ValueError, match=r"Batch length of predictions should be same\. half has different batch"):
        next(predict(in_process(model_fn)))


def test_a6_3_a_scalar_has_no_rows(in_process: MakeEstimator) -> None:
    model_fn = predicting(lambda features: {"x": features, "total": tf.reduce_sum(features)})

    with pytest.raises(ValueError, match=r"total is a scalar.*yield_single_examples=False"):
        next(predict(in_process(model_fn)))


# 4. predict_keys


@pytest.mark.parametrize(
    ("keys", "given"), [(["y"], {"y"}), ("x", {"x"}), (("x", "y"), {"x", "y"}), (["y", "unknown"], {"y"})]
)
def test_a6_4_predict_keys_choose_and_unknown_ones_among_them_are_dropped(
    in_process: MakeEstimator, keys: Any, given: set[str]
) -> None:
    assert set(next(predict(in_process(linear_model_fn, params={}), predict_keys=keys))) == given


def test_a6_4_what_is_not_chosen_is_not_computed(in_process: MakeEstimator) -> None:
    def fails(features: Any) -> Any:
        with tf.control_dependencies([v1.assert_equal(tf.constant(1), tf.constant(2) * tf.shape(features)[0])]):
            return tf.identity(features)

    model_fn = predicting(lambda features: {"x": features, "bad": fails(features)})

    np.testing.assert_array_equal(next(predict(in_process(model_fn), predict_keys="x"))["x"], X[0])


def test_a6_4_predict_keys_need_a_dict(in_process: MakeEstimator) -> None:
    with pytest.raises(ValueError, match="predict_keys argument is not valid in case of non-dict predictions"):
        next(predict(in_process(predicting(lambda features: features)), predict_keys=["x"]))


def test_a6_4_some_key_must_be_known(in_process: MakeEstimator) -> None:
    with pytest.raises(ValueError, match=r"Expected to run at least one output from \['y', 'x'\], provided \('z',\)"):
        next(predict(in_process(linear_model_fn, params={}), predict_keys=["z"]))


# 5. Its end


def test_a6_5_it_ends_with_the_input_the_ragged_batch_included(in_process: MakeEstimator) -> None:
    def input_fn() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(X[:50]).batch(BATCH)

    rows = in_process(predicting(lambda features: features)).predict(input_fn, allow_untrained=True)

    np.testing.assert_array_equal(np.stack(list(rows)), X[:50])


def test_a6_5_it_ends_with_the_input_though_the_model_does_not_look_at_it(in_process: MakeEstimator) -> None:
    rows = list(predict(in_process(predicting(lambda features: tf.constant([7.0])))))

    assert rows == [7.0] * (NUM_ROWS // BATCH)


@pytest.mark.parametrize("as_iterator", [False, True])
def test_a6_5_tensors_without_an_end_are_warned_about(
    in_process: MakeEstimator, caplog: pytest.LogCaptureFixture, as_iterator: bool
) -> None:
    def input_fn() -> Any:
        return v1.data.make_one_shot_iterator(features_input_fn()).get_next() if as_iterator else tf.constant(X)

    rows = in_process(predicting(lambda features: features)).predict(input_fn, allow_untrained=True)

    assert len(list(itertools.islice(rows, 2 * NUM_ROWS))) == (NUM_ROWS if as_iterator else 2 * NUM_ROWS)
    warned = any("That means predict yields forever" in record.getMessage() for record in caplog.records)
    assert warned is not as_iterator


# 6. Hooks, and leaving


def test_a6_6_hooks_run_in_order_the_users_before_those_of_the_spec(in_process: MakeEstimator) -> None:
    notes: list[str] = []

    def model_fn(features: Any, mode: str) -> EstimatorSpec:
        return EstimatorSpec(mode, predictions=features, prediction_hooks=[Note("spec's", notes)])

    rows = predict(in_process(model_fn), hooks=[Note("user's", notes)])
    for _ in rows:
        pass

    one_run = ["user's ran", "spec's ran"]
    assert notes[:4] == ["user's begins", "spec's begins", *one_run]
    assert notes[4:-2] == one_run * ((len(notes) - 6) // 2)
    assert notes[-2:] == ["user's ends", "spec's ends"]


def test_a6_6_hooks_end_in_the_graph_of_the_prediction(in_process: MakeEstimator) -> None:
    graphs: list[Any] = []

    class NoteGraph(v1.train.SessionRunHook):
        def begin(self) -> None:
            graphs.append(v1.get_default_graph())

        def end(self, session: Any) -> None:
            graphs.append(v1.get_default_graph())

    list(predict(in_process(predicting(lambda features: features)), hooks=[NoteGraph()]))

    assert graphs[0] is graphs[1]


def test_a6_6_a_hook_may_end_it(in_process: MakeEstimator) -> None:
    class StopAtOnce(v1.train.SessionRunHook):
        def after_run(self, run_context: Any, run_values: Any) -> None:
            run_context.request_stop()

    rows = list(predict(in_process(predicting(lambda features: features)), hooks=[StopAtOnce()]))

    assert len(rows) == BATCH


@pytest.mark.parametrize("how", ["close", "break"])
def test_a6_6_leaving_early_releases_the_session_and_ends_no_hook(in_process: MakeEstimator, how: str) -> None:
    note = Note("user's", [])
    rows = predict(in_process(predicting(lambda features: features)), hooks=[note])

    if how == "close":
        next(rows)
        rows.close()
    else:
        for _ in rows:
            break
        del rows

    assert note.notes == ["user's begins", "user's ran"]
    assert_closed(note.session)


def test_a6_6_the_end_releases_the_session(in_process: MakeEstimator) -> None:
    note = Note("user's", [])

    list(predict(in_process(predicting(lambda features: features)), hooks=[note]))

    assert_closed(note.session)


def test_a6_6_an_error_of_the_model_releases_the_session_and_ends_no_hook(in_process: MakeEstimator) -> None:
    note = Note("user's", [])
    rows = predict(
        in_process(predicting(lambda features: tf.debugging.check_numerics(features / 0.0, "divided by zero"))),
        hooks=[note],
    )

    with pytest.raises(tf.errors.InvalidArgumentError, match="divided by zero"):
        next(rows)

    assert note.notes == ["user's begins"]
    assert_closed(note.session)


def test_a6_6_rows_come_in_the_order_of_the_input_from_the_checkpoint(in_process: MakeEstimator) -> None:
    def input_fn() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices((X, X @ WEIGHTS)).repeat().batch(BATCH)

    estimator = in_process(linear_model_fn, params={}).train(input_fn, steps=3)
    kernel, bias = (estimator.get_variable_value(f"dense/{name}") for name in ("kernel", "bias"))

    predicted = np.stack([row["y"] for row in estimator.predict(features_input_fn)])

    np.testing.assert_allclose(predicted, X @ kernel + bias, rtol=1e-5, atol=1e-5)
