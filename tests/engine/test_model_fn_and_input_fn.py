"""Arguments and return values of model_fn and input_fn."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.models import X, Y, endless_input_fn, linear_model_fn, one_pass_input_fn
from support.recording import scalars

from ray_estimator import EstimatorSpec, ModeKeys, RunConfig, ServingInputReceiver

Make = Callable[..., Any]


def mean_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    """One weight times the mean of dense features; labels are optional and ignored."""
    weight = v1.get_variable("weight", [], initializer=v1.ones_initializer())
    values = tf.cast(tf.reshape(features, [-1, 1]), tf.float32)
    loss = weight * tf.reduce_mean(values)
    train_op = v1.train.GradientDescentOptimizer(0.1).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, predictions=weight * values, loss=loss, train_op=train_op)


def mean_of(pick: Callable[[Any, Any], Any]) -> Callable[..., EstimatorSpec]:
    """`mean_model_fn` on the result of `pick(features, labels)`."""

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        return mean_model_fn(pick(features, labels), None, mode)

    return model_fn


def run_every_verb(estimator: Any, input_fn: Callable[..., Any]) -> None:
    """Train for one step, evaluate one batch, predict one row."""
    estimator.train(input_fn, steps=1)
    estimator.evaluate(input_fn, steps=1)
    next(estimator.predict(input_fn))


# 1


def test_a2_1_model_fn_gets_its_arguments_by_keyword(in_process: Make) -> None:
    given: dict[str, Any] = {}

    def model_fn(*, model_dir: str, labels: Any, config: RunConfig, params: Any, mode: str, features: Any) -> Any:
        given.update(model_dir=model_dir, config=config, params=params, mode=mode)
        return linear_model_fn(features, labels, mode, params)

    estimator = in_process(model_fn, params={"learning_rate": 0.5}, tf_random_seed=3).train(endless_input_fn, steps=1)

    assert given["mode"] == ModeKeys.TRAIN
    assert given["params"] == {"learning_rate": 0.5}
    assert given["model_dir"] == given["config"].model_dir == estimator.model_dir
    assert given["config"].tf_random_seed == 3
    assert given["config"].is_chief
    assert (given["config"].task_id, given["config"].num_worker_replicas) == (0, 1)


def test_a2_1_model_fn_gets_only_the_names_that_it_accepts(in_process: Make) -> None:
    in_process(lambda features, mode: mean_model_fn(features, None, mode)).train(lambda: tf.constant(X), steps=1)


def test_a2_1_what_a_partial_binds_is_not_given_again(in_process: Make) -> None:
    model_fn = functools.partial(linear_model_fn, params={"learning_rate": 0.0})

    estimator = in_process(model_fn).train(endless_input_fn, steps=2)

    assert estimator.get_variable_value("dense/kernel") == pytest.approx(np.ones((4, 1)))


def test_a2_1_model_fn_cannot_change_the_params_of_later_calls(in_process: Make) -> None:
    seen = []

    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        seen.append(list(params["sizes"]))
        params["sizes"].append(1)
        return linear_model_fn(features, labels, mode, params)

    run_every_verb(in_process(model_fn, params={"sizes": [8]}), endless_input_fn)

    assert seen == [[8], [8], [8]]


@pytest.mark.parametrize("returned", [None, 1.0, {"loss": 1.0}])
def test_a2_1_model_fn_must_return_an_estimator_spec(in_process: Make, returned: Any) -> None:
    with pytest.raises(ValueError, match="model_fn should return an EstimatorSpec"):
        in_process(lambda features, labels: returned).train(endless_input_fn, steps=1)


def test_a2_1_a_spec_of_another_class_with_the_same_fields_will_do(in_process: Make) -> None:
    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> Any:
        return types.SimpleNamespace(**linear_model_fn(features, labels, mode, params)._asdict())

    estimator = in_process(model_fn, params={})
    run_every_verb(estimator, endless_input_fn)

    assert estimator.get_variable_value("global_step") == 1


# 2


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a2_2_labels_that_model_fn_does_not_take_are_refused(in_process: Make, verb: str) -> None:
    estimator = in_process(lambda features, mode: mean_model_fn(features, None, mode))
    estimator.train(lambda: tf.constant(X), steps=1)

    with pytest.raises(ValueError, match="model_fn does not take labels, but input_fn returns labels"):
        getattr(estimator, verb)(endless_input_fn, steps=1)


def test_a2_2_predict_gives_no_labels(in_process: Make) -> None:
    seen = {}

    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        seen[mode] = labels
        return linear_model_fn(features, labels, mode, params)

    run_every_verb(in_process(model_fn, params={}), endless_input_fn)

    assert seen[ModeKeys.TRAIN] is not None
    assert seen[ModeKeys.EVAL] is not None
    assert seen[ModeKeys.PREDICT] is None


def test_a2_2_predict_drops_labels_that_model_fn_does_not_take(in_process: Make) -> None:
    estimator = in_process(lambda features, mode: mean_model_fn(features, None, mode))
    estimator.train(lambda: tf.constant(X), steps=1)

    assert len(list(estimator.predict(one_pass_input_fn))) == X.size


# 3


def test_a2_3_input_fn_gets_by_name_what_it_accepts(in_process: Make) -> None:
    given: list[dict[str, Any]] = []

    def input_fn(params: Any, mode: str, input_context: Any, config: RunConfig) -> tf.data.Dataset:
        given.append({"params": params, "mode": mode, "input_context": input_context, "config": config})
        return endless_input_fn()

    estimator = in_process(linear_model_fn, params={"learning_rate": 0.5}, tf_random_seed=3)
    run_every_verb(estimator, input_fn)

    assert [call["mode"] for call in given] == [ModeKeys.TRAIN, ModeKeys.EVAL, ModeKeys.PREDICT]
    for call in given:
        assert call["params"] == {"learning_rate": 0.5}
        assert (call["config"].model_dir, call["config"].tf_random_seed) == (estimator.model_dir, 3)
        assert isinstance(call["input_context"], tf.distribute.InputContext)


def test_a2_3_an_input_fn_with_bound_arguments_gets_only_the_others(in_process: Make) -> None:
    def input_fn(rows: int, mode: str) -> tf.data.Dataset:
        return one_pass_input_fn().unbatch().take(rows).batch(1)

    estimator = in_process(linear_model_fn, params={}).train(functools.partial(input_fn, rows=3))

    assert estimator.get_variable_value("global_step") == 3


def test_a2_3_input_fn_runs_on_the_cpu_inside_the_graph_of_model_fn(in_process: Make) -> None:
    graphs: dict[str, list[tf.Graph]] = {"input_fn": [], "model_fn": []}
    devices = []

    def input_fn() -> tf.data.Dataset:
        graphs["input_fn"].append(v1.get_default_graph())
        devices.append(tf.constant(1.0).device)
        assert not tf.executing_eagerly()
        return endless_input_fn()

    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        graphs["model_fn"].append(v1.get_default_graph())
        return linear_model_fn(features, labels, mode, params)

    run_every_verb(in_process(model_fn, params={}), input_fn)

    assert len(graphs["input_fn"]) == 3
    assert all(one is other for one, other in zip(graphs["input_fn"], graphs["model_fn"], strict=True))
    assert {tf.DeviceSpec.from_string(device).device_type for device in devices} == {"CPU"}


# 4


def two_constants() -> Any:
    return tf.constant(X), tf.constant(Y)


def a_list_of_two() -> Any:
    return [tf.constant(X), tf.constant(Y)]


def tensors_of_an_iterator() -> Any:
    return v1.data.make_one_shot_iterator(endless_input_fn()).get_next()


def tensors_of_a_queue() -> Any:
    return v1.train.batch(v1.train.slice_input_producer([X, Y], shuffle=False), batch_size=32)


@pytest.mark.parametrize(
    "input_fn", [endless_input_fn, two_constants, a_list_of_two, tensors_of_an_iterator, tensors_of_a_queue]
)
def test_a2_4_features_and_labels_may_come_as(in_process: Make, input_fn: Callable[[], Any]) -> None:
    estimator = in_process(linear_model_fn, params={"learning_rate": 0.1}).train(input_fn, steps=150)

    assert estimator.get_variable_value("global_step") == 150
    assert estimator.evaluate(one_pass_input_fn)["loss"] < 1e-2


def test_a2_4_a_queue_that_ends_ends_training(in_process: Make) -> None:
    def input_fn() -> Any:
        rows = v1.train.slice_input_producer([X, Y], num_epochs=1, shuffle=False)
        return v1.train.batch(rows, batch_size=64)

    estimator = in_process(linear_model_fn, params={}).train(input_fn)

    assert estimator.get_variable_value("global_step") == len(X) // 64


@pytest.mark.parametrize(
    "input_fn",
    [
        lambda: tf.data.Dataset.from_tensors(X).repeat(),
        lambda: tf.constant(X),
        lambda: v1.data.make_one_shot_iterator(tf.data.Dataset.from_tensors(X).repeat()).get_next(),
    ],
    ids=["dataset", "constant", "iterator"],
)
def test_a2_4_features_alone_may_come_as(in_process: Make, input_fn: Callable[[], Any]) -> None:
    labels_seen = []

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        labels_seen.append(labels)
        return mean_model_fn(features, labels, mode)

    estimator = in_process(model_fn).train(input_fn, steps=1)

    assert labels_seen == [None]
    assert estimator.get_variable_value("weight") == pytest.approx(1.0 - 0.1 * X.mean())


@pytest.mark.parametrize("as_dataset", [True, False])
def test_a2_4_a_dict_of_features_alone(in_process: Make, as_dataset: bool) -> None:
    def input_fn() -> Any:
        return tf.data.Dataset.from_tensors({"x": X}) if as_dataset else {"x": tf.constant(X)}

    estimator = in_process(mean_of(lambda features, labels: features["x"])).train(input_fn, steps=1)

    assert estimator.get_variable_value("weight") == pytest.approx(1.0 - 0.1 * X.mean())


@pytest.mark.parametrize(
    "input_fn",
    [
        lambda: (tf.constant(X),),
        lambda: (tf.constant(X), tf.constant(Y), tf.constant(Y)),
        lambda: tf.data.Dataset.from_tensors((X, Y, Y)),
    ],
    ids=["one", "three", "three in a dataset"],
)
def test_a2_4_tuple_of_other_length_is_refused(in_process: Make, input_fn: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"input_fn should return \(features, labels\) as a len 2 tuple"):
        in_process(linear_model_fn, params={}).train(input_fn, steps=1)


# 5


def test_a2_5_sparse_features(in_process: Make) -> None:
    kinds = []

    def dense(features: Any, labels: Any) -> Any:
        kinds.append(type(features))
        return tf.sparse.to_dense(features)

    estimator = in_process(mean_of(dense))
    estimator.train(lambda: tf.data.Dataset.from_tensors(X).map(tf.sparse.from_dense), steps=1)

    assert kinds == [tf.SparseTensor]
    assert estimator.get_variable_value("weight") == pytest.approx(1.0 - 0.1 * X.mean())


def test_a2_5_ragged_features(in_process: Make) -> None:
    rows = [[1.0, 2.0, 3.0], [], [6.0]]
    kinds = []

    def input_fn() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(tf.ragged.constant(rows, tf.float32)).batch(3)

    def values(features: Any, labels: Any) -> Any:
        kinds.append(type(features))
        return features.values

    estimator = in_process(mean_of(values)).train(input_fn, steps=1)

    assert kinds == [tf.RaggedTensor]
    assert estimator.get_variable_value("weight") == pytest.approx(1.0 - 0.1 * 3.0)


def test_a2_5_nested_dicts_of_features_and_a_dict_of_labels(in_process: Make) -> None:
    def input_fn() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors(({"user": {"age": [1.0]}, "item": [2.0]}, {"click": [4.0]}))

    def total(features: Any, labels: Any) -> Any:
        return features["user"]["age"] + features["item"] + labels["click"]

    estimator = in_process(mean_of(total)).train(input_fn, steps=1)

    assert estimator.get_variable_value("weight") == pytest.approx(1.0 - 0.1 * 7.0)


def test_a2_5_integer_keys_in_training_and_serving(in_process: Make, tmp_path: Any) -> None:
    def receiver_fn() -> ServingInputReceiver:
        x = v1.placeholder(tf.float32, [None])
        return ServingInputReceiver({0: x}, {"x": x})

    estimator = in_process(mean_of(lambda features, labels: features[0]))
    estimator.train(lambda: tf.data.Dataset.from_tensors({0: [2.0]}), steps=1)
    exported = estimator.export_savedmodel(tmp_path / "export", receiver_fn)

    served = tf.saved_model.load(exported).signatures["serving_default"](x=tf.constant([10.0]))
    assert served["output"].numpy() == pytest.approx(np.array([[8.0]]))


# 6


def test_a2_6_the_iterator_starts_before_the_users_hooks_see_the_session(in_process: Make) -> None:
    first_batches = []

    class ReadsTheInput(v1.train.SessionRunHook):
        def after_create_session(self, session: Any, coord: Any) -> None:
            first_batches.append(session.run(v1.get_default_graph().get_tensor_by_name("seen:0")))

    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        tf.identity(features, name="seen")
        return linear_model_fn(features, labels, mode, params)

    in_process(model_fn, params={}).train(endless_input_fn, steps=1, hooks=[ReadsTheInput()])

    assert np.array_equal(first_batches[0], X[:32])


def test_a2_6_tables_are_initialised_wherever_they_are_made(in_process: Make) -> None:
    def table(*values: float) -> Any:
        keys = tf.constant(["a", "b"])
        return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, tf.constant(values)), 0.0)

    def input_fn() -> tf.data.Dataset:
        in_map = table(1.0, 2.0)
        words = tf.data.Dataset.from_tensors(["a", "b"])
        return words.map(lambda batch: {"words": batch, "looked_up": in_map.lookup(batch)})

    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        looked_up = table(10.0, 20.0).lookup(features["words"])
        return mean_model_fn(features["looked_up"] + looked_up, labels, mode)

    estimator = in_process(model_fn).train(input_fn)

    assert estimator.get_variable_value("weight") == pytest.approx(1.0 - 0.1 * 16.5)


def test_a2_6_an_initializer_among_the_tables_is_run(in_process: Make) -> None:
    def input_fn() -> Any:
        iterator = v1.data.make_initializable_iterator(one_pass_input_fn())
        v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
        return iterator.get_next()

    estimator = in_process(linear_model_fn, params={}).train(input_fn)

    assert estimator.get_variable_value("global_step") == 8


# 7


def test_a2_7_every_call_has_a_fresh_graph(in_process: Make) -> None:
    graphs = []

    def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
        graphs.append(v1.get_default_graph())
        return linear_model_fn(features, labels, mode, params)

    estimator = in_process(model_fn, params={})
    estimator.train(endless_input_fn, steps=1)
    run_every_verb(estimator, endless_input_fn)

    assert len({id(graph) for graph in graphs}) == len(graphs) == 4


def test_a2_7_the_graph_has_the_seed_of_the_config_before_input_fn(in_process: Make) -> None:
    seeds = []

    def input_fn() -> tf.data.Dataset:
        seeds.append(v1.get_default_graph().seed)
        return endless_input_fn()

    run_every_verb(in_process(linear_model_fn, params={}, tf_random_seed=42), input_fn)

    assert seeds == [42, 42, 42]


def test_a2_7_one_seed_gives_the_same_initial_weights(in_process: Make, tmp_path: Any) -> None:
    def model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
        noise = v1.get_variable("noise", [3], initializer=v1.random_normal_initializer())
        return mean_model_fn(features + tf.reduce_sum(noise) * 0.0, labels, mode)

    def initial_noise(name: str, seed: int) -> Any:
        estimator = in_process(model_fn, model_dir=tmp_path / name, tf_random_seed=seed)
        return estimator.train(lambda: tf.constant(X), steps=1).get_variable_value("noise")

    first, second, other = initial_noise("a", 1), initial_noise("b", 1), initial_noise("c", 2)

    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a2_7_the_global_step_is_there_before_input_fn(in_process: Make) -> None:
    steps = []

    def input_fn() -> tf.data.Dataset:
        (in_collection,) = v1.get_collection(v1.GraphKeys.GLOBAL_STEP)
        assert v1.train.get_global_step() is in_collection
        steps.append(in_collection)
        return endless_input_fn()

    run_every_verb(in_process(linear_model_fn, params={}), input_fn)

    assert len(steps) == 3
    assert all(step.dtype.base_dtype == tf.int64 and step.shape.rank == 0 for step in steps)


# 8, as far as one process can show it


def test_a2_8_the_input_context_counts_one_pipeline_and_one_replica(in_process: Make) -> None:
    contexts = []

    def input_fn(input_context: Any) -> tf.data.Dataset:
        contexts.append(input_context)
        return endless_input_fn()

    run_every_verb(in_process(linear_model_fn, params={}), input_fn)

    assert len(contexts) == 3
    for context in contexts:
        assert (context.num_input_pipelines, context.input_pipeline_id, context.num_replicas_in_sync) == (1, 0, 1)
        assert context.get_per_replica_batch_size(64) == 64


def test_a2_8_one_replica_trains_on_the_batch_and_the_loss_as_they_are(in_process: Make) -> None:
    calls = []

    def input_fn() -> tf.data.Dataset:
        calls.append("input_fn")
        return endless_input_fn()

    estimator = in_process(linear_model_fn, params={"learning_rate": 0.05}).train(input_fn, steps=1)

    error = X[:32] @ np.ones((4, 1), np.float32) - Y[:32]
    gradient = 2 * X[:32].T @ error / 32
    assert calls == ["input_fn"]
    assert estimator.get_variable_value("dense/kernel") == pytest.approx(1.0 - 0.05 * gradient, abs=1e-6)
    assert scalars(estimator.model_dir, "loss")[1] == pytest.approx(np.mean(error**2), rel=1e-6)
