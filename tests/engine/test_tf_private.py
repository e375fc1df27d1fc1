"""The public meaning of each private name of TensorFlow and Keras that the engine leans on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.processes import in_a_process, session, two_replicas_here
from tensorflow.python.util import deprecation

from ray_estimator._engine.tf_private import graphs, iterators, saved_model, sessions
from ray_estimator._engine.tf_private import keras as keras_private
from ray_estimator._engine.tf_private import strategy as strategy_private
from ray_estimator._jobs.serialization import keras_settings_of_this_thread
from ray_estimator.export import PredictOutput, ServingInputReceiver

v1 = tf.compat.v1


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    """Each test builds in a graph of its own."""
    with tf.Graph().as_default() as graph:
        yield graph


@pytest.fixture
def two_replicas() -> tf.distribute.Strategy:
    return two_replicas_here()


# TensorFlow: graphs and sessions


def test_without_deprecation_notices_tensorflow_says_no_name_will_go(caplog: pytest.LogCaptureFixture) -> None:
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


def test_global_step_read_is_what_every_hook_reads() -> None:
    step = v1.train.create_global_step()
    sessions.read_global_step_plainly(step)
    read = sessions.global_step_read()
    assert read.op in sessions.global_step_reads()
    assert sessions.global_step_read() is read
    with session() as opened:
        opened.run(step.assign(7))
        assert opened.run(read) == 7


def test_event_writers_that_were_open_before_stay_open(tmp_path: Path) -> None:
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


def test_open_event_writer_is_what_hooks_find_and_has_a_file_of_its_own(tmp_path: Path) -> None:
    with sessions.closing_event_writers():
        sessions.open_event_writer(str(tmp_path))
        (first,) = tmp_path.iterdir()
        writer = v1.summary.FileWriterCache.get(str(tmp_path))
        sessions.open_event_writer(str(tmp_path))
        assert v1.summary.FileWriterCache.get(str(tmp_path)) is writer
    with sessions.closing_event_writers():
        sessions.open_event_writer(str(tmp_path))
        assert len(set(tmp_path.iterdir()) - {first}) == 1


def test_run_after_orders_existing_operations() -> None:
    counter = v1.get_variable("counter", [], initializer=v1.zeros_initializer())
    read = counter.read_value()
    look = read.op.inputs[0].op  # `read` is only an identity of what is read
    write = counter.assign_add(1.0, read_value=False)
    graphs.run_after(look, [write, look])
    assert list(look.control_inputs) == [write]
    with session() as opened:
        assert [opened.run(read) for _ in range(3)] == [1.0, 2.0, 3.0]


def test_in_v1_control_flow_tells_loops_and_branches_from_the_graph() -> None:
    enabled = v1.control_flow_v2_enabled()
    inside: list[tf.Operation] = []

    def branch() -> tf.Tensor:
        inside.append(tf.add(1.0, 2.0).op)
        return inside[0].outputs[0]

    def body(step: tf.Tensor) -> tf.Tensor:
        inside.append(tf.add(step, 1).op)
        return inside[-1].outputs[0]

    try:
        v1.disable_control_flow_v2()
        v1.cond(v1.placeholder_with_default(True, []), branch, lambda: tf.constant(0.0))
        v1.while_loop(lambda step: step < 3, body, [tf.constant(0)])
    finally:
        if enabled:
            v1.enable_control_flow_v2()
    assert [graphs.in_v1_control_flow(op) for op in inside] == [True, True]
    assert not graphs.in_v1_control_flow(tf.add(1.0, 2.0).op)


def test_keep_shape_makes_an_assignment_of_another_shape_fail() -> None:
    variable = v1.get_variable("variable", initializer=np.zeros(2, np.float32))
    value = v1.placeholder(tf.float32)
    assign = tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
    graphs.keep_shape(assign)
    with session() as opened:
        opened.run(assign, {value: [1.0, 2.0]})
        with pytest.raises(tf.errors.InvalidArgumentError):
            opened.run(assign, {value: [1.0, 2.0, 3.0]})
        assert opened.run(variable).tolist() == [1.0, 2.0]


def test_replace_input_gives_an_operation_another_input() -> None:
    total = tf.add(tf.constant(1.0), tf.constant(2.0))
    graphs.replace_input(total.op, 0, tf.constant(10.0))
    with session() as opened:
        assert opened.run(total) == 12.0


def test_set_initializer_is_what_initialises_a_variable() -> None:
    variable = v1.get_variable("variable", [], initializer=v1.zeros_initializer())
    graphs.set_initializer(variable, tf.raw_ops.AssignVariableOp(resource=variable.handle, value=5.0))
    with session() as opened:
        opened.run(v1.global_variables_initializer())
        assert opened.run(variable) == 5.0


def test_postpone_stop_takes_a_request_back() -> None:
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


def test_stop_after_ends_an_evaluation_after_so_many_batches() -> None:
    batches = v1.get_variable(
        "batches", [], initializer=v1.zeros_initializer(), collections=[v1.GraphKeys.LOCAL_VARIABLES]
    )
    v1.train.create_global_step()
    assert evaluated(batches.assign_add(1.0), batches.read_value(), [sessions.stop_after(4)]) == 4.0


def test_create_eval_step_makes_the_counter_that_stop_after_looks_at() -> None:
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


def test_signature_defs_name_inputs_and_outputs() -> None:
    x = v1.placeholder(tf.float32, [None, 2], name="x")
    receiver = ServingInputReceiver({"x": x}, {"input": x})
    signatures = saved_model.signature_defs(receiver, {"serving_default": PredictOutput({"double": x * 2})})
    signature = signatures["serving_default"]
    assert signature.inputs["input"].name == "x:0"
    assert list(signature.outputs) == ["double"]


def test_signature_defs_leave_out_what_the_receiver_does_not_feed() -> None:
    x, unfed = v1.placeholder(tf.float32, [2]), v1.placeholder(tf.float32, [2])
    receiver = ServingInputReceiver({"x": x}, {"x": x}, {"other": {"unfed": unfed}})
    outputs = {"good": PredictOutput({"double": x * 2}), "bad": PredictOutput({"sum": x + unfed})}
    assert list(saved_model.signature_defs(receiver, outputs)) == ["good"]


def test_export_outputs_are_what_is_served_or_one_of_loss_predictions_and_metrics() -> None:
    loss, update = tf.constant(1.0), tf.no_op()
    served = {"serving_default": PredictOutput(loss)}
    rest: dict[str, Any] = {"predictions": {"p": loss}, "loss": loss, "metrics": {"m": (loss, update)}}
    for mode, names in {"infer": ["serving_default"], "train": ["train"], "eval": ["eval"]}.items():
        outputs = saved_model.export_outputs(mode, served=served, **rest)
        assert list(outputs) == names
    assert set(outputs["eval"].metrics) == {"metrics/m/value", "metrics/m/update_op"}
    assert set(outputs["eval"].predictions) == {"predictions/p"}


def test_keep_train_op_puts_it_where_loaders_find_it() -> None:
    from tensorflow.python.saved_model.loader_impl import get_train_op

    train_op = tf.no_op("train")
    saved_model.keep_train_op(train_op)
    assert get_train_op(v1.train.export_meta_graph()) is train_op


def test_saver_of_objects_restores_what_the_checkpoint_names(tmp_path: Path) -> None:
    weight = v1.get_variable("weight", [], initializer=v1.constant_initializer(3.0))
    v1.get_variable("unnamed", [], initializer=v1.zeros_initializer())
    saver = saved_model.saver_of_objects(tf.train.Checkpoint(w=weight))
    with session() as opened:
        path = saver.save(opened, str(tmp_path / "model.ckpt"))
        opened.run(weight.assign(0.0))
        saver.restore(opened, path)
        assert opened.run(weight) == 3.0
    assert "w/.ATTRIBUTES/VARIABLE_VALUE" in dict(tf.train.list_variables(path))


# TensorFlow: tf.data iterators


def test_an_iterator_goes_on_where_another_one_was(tmp_path: Path) -> None:
    dataset = tf.data.Dataset.range(20).shuffle(5, seed=3).batch(2).prefetch(1)
    first, second = (v1.data.make_initializable_iterator(dataset) for _ in range(2))
    take_first, take_second = first.get_next(), second.get_next()
    prefix = tf.constant(str(tmp_path / "state"))
    save = iterators.save_state(iterators.resource_of(first), prefix)
    restore = iterators.restore_state(iterators.resource_of(second), prefix)
    with session() as opened:
        opened.run([first.initializer, second.initializer])
        for _ in range(4):
            opened.run(take_first)
        opened.run(save)
        opened.run(restore)
        rest = [opened.run(take_first).tolist() for _ in range(6)]
        assert [opened.run(take_second).tolist() for _ in range(6)] == rest


def test_an_iterator_with_state_elsewhere_says_so_in_a_line(tmp_path: Path) -> None:
    dataset = tf.data.Dataset.range(9).map(lambda x: tf.numpy_function(abs, [x], tf.int64))
    iterator = v1.data.make_initializable_iterator(dataset)
    save = iterators.save_state(iterators.resource_of(iterator), tf.constant(str(tmp_path / "state")))
    with session() as opened:
        opened.run(iterator.initializer)
        with pytest.raises(tf.errors.FailedPreconditionError) as caught:
            opened.run(save)
    assert iterators.text_of(caught.value) == "PyFunc is stateful."


def test_a_fingerprint_tells_pipelines_and_their_constants_apart() -> None:
    def fingerprint(rows: list[int], batch_size: int) -> int:
        dataset = tf.data.Dataset.from_tensor_slices(rows).map(lambda x: x + 1).batch(batch_size)
        with session() as opened:
            return int(opened.run(iterators.fingerprint_of(dataset)))

    assert fingerprint([1, 2], 2) == fingerprint([1, 2], 2)
    assert len({fingerprint([1, 2], 2), fingerprint([1, 3], 2), fingerprint([1, 2], 3)}) == 3


# TensorFlow: distribution


def test_losses_are_summed_says_how_the_model_reduced_its_last_loss(two_replicas: tf.distribute.Strategy) -> None:
    answers = []
    ones = tf.ones([2])
    with two_replicas.scope(), strategy_private.averaging_v1_gradients(two_replicas):
        for reduction in (v1.losses.Reduction.SUM, v1.losses.Reduction.SUM_OVER_BATCH_SIZE):
            v1.losses.mean_squared_error(ones, ones, reduction=reduction)
            answers.append(graphs.losses_are_summed())
    assert answers == [True, False]


def test_awaited_step_is_that_of_a_waiter() -> None:
    assert sessions.awaited_step(v1.train.GlobalStepWaiterHook(7)) == 7
    assert sessions.awaited_step(v1.train.SessionRunHook()) == 0


def test_read_global_step_plainly_gives_hooks_a_plain_read() -> None:
    step = v1.train.create_global_step()
    sessions.read_global_step_plainly(step)
    (read,) = sessions.global_step_reads()
    hook = v1.train.StopAtStepHook(last_step=3)
    operations = len(v1.get_default_graph().get_operations())
    hook.begin()
    assert len(v1.get_default_graph().get_operations()) == operations
    with session() as opened:
        opened.run(step.assign(5))
        assert opened.run(read.outputs[0]) == 5


def test_global_step_reads_are_what_hooks_fetch() -> None:
    v1.train.create_global_step()
    assert sessions.global_step_reads() == []
    v1.train.StopAtStepHook(last_step=3).begin()
    assert len(sessions.global_step_reads()) == 1


def test_replay_v2_switches_turns_off_what_the_driver_turned_off() -> None:
    in_a_process("switches")


# Keras 3


def test_keras_3_is_the_package_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keras_private.keras_3() is keras
    monkeypatch.delitem(sys.modules, "keras")
    assert keras_private.keras_3() is None


def in_another_thread(ask: Callable[[], Any]) -> Any:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    thread.join()
    return answers[0]


def test_apply_keras_settings_carries_a_threads_settings_to_another() -> None:
    def drivers() -> Any:
        keras.config.set_dtype_policy("mixed_bfloat16")
        return keras_settings_of_this_thread()

    def replicas() -> str:
        keras_private.apply_keras_settings(settings)
        return str(keras.layers.Dense(1).dtype_policy.name)

    settings = in_another_thread(drivers)
    assert in_another_thread(replicas) == "mixed_bfloat16"
    assert in_another_thread(lambda: keras.config.dtype_policy().name) == "float32"


def test_seeding_keras_fixes_weights_and_seeds_and_leaves_pythons_random_alone() -> None:
    import random

    def drawn(seed: int | None) -> list[Any]:
        with keras_private.seeding_keras(seed):
            kernel = keras.initializers.GlorotUniform()([3, 3])
            state = keras.random.SeedGenerator().state
        with session() as opened:
            return [opened.run(kernel).tolist(), opened.run(state.value).tolist()]

    random.seed(1)
    expected = random.random()
    random.seed(1)
    first, again, other = drawn(4), drawn(4), drawn(5)
    assert random.random() == expected
    assert first == again
    assert all(mine != others for mine, others in zip(first, other, strict=True))
    assert drawn(None) != drawn(None)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("summed", [False, True], ids=["mean", "sum"])
def test_averaging_keras_gradients_makes_keras_optimizers_average(
    two_replicas: tf.distribute.Strategy, sparse: bool, summed: bool
) -> None:
    with two_replicas.scope():
        weight = keras.Variable(np.zeros([2, 1], np.float32))
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build([weight])

    def replica() -> None:
        number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32) + 1.0
        row = number * tf.ones([1, 1])
        gradient = tf.IndexedSlices(row, tf.constant([0]), tf.constant([2, 1])) if sparse else tf.repeat(row, 2, 0)
        reduction = v1.losses.Reduction.SUM if summed else v1.losses.Reduction.MEAN
        v1.losses.mean_squared_error(row, row, reduction=reduction)
        optimizer.apply_gradients([(gradient, weight)])

    graph = v1.get_default_graph()
    before = len(graph.get_operations())
    with (
        two_replicas.scope(),
        strategy_private.averaging_v1_gradients(two_replicas),
        keras_private.averaging_keras_gradients(2),
    ):
        two_replicas.extended.call_for_each_replica(replica)
    writes = [op for op in graph.get_operations()[before:] if op.type.startswith(("Assign", "ResourceScatter"))]
    with session() as opened:
        opened.run(writes)
        after = opened.run(two_replicas.extended.read_var(weight.value))
    step = -3.0 if summed else -1.5
    assert after.tolist() == [[step], [0.0 if sparse else step]]


def test_averaging_keras_gradients_ends_with_its_block() -> None:
    from keras.src.backend.tensorflow.optimizer import TFOptimizer

    summing = TFOptimizer._all_reduce_sum_gradients

    def failing() -> None:
        with keras_private.averaging_keras_gradients(2):
            assert TFOptimizer._all_reduce_sum_gradients is not summing
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert TFOptimizer._all_reduce_sum_gradients is summing
    with keras_private.averaging_keras_gradients(1):
        assert TFOptimizer._all_reduce_sum_gradients is summing


def test_keras_in_graph_gives_variables_the_path_that_keras_gives_them() -> None:
    def built() -> list[tuple[str, str]]:
        shared, other = keras.layers.Dense(1, name="one"), keras.layers.Dense(1, name="one_1")
        for _ in range(3):
            shared(tf.ones([1, 1]))
        with tf.name_scope("tower"):
            other(tf.ones([1, 1]))
        return [(variable.value.name, variable.path) for layer in (shared, other) for variable in layer.variables]

    with keras_private.keras_in_graph():
        names = built()
        elsewhere = in_another_thread(_built_in_another_graph)
    assert names == [
        ("one/kernel:0", "one/kernel"),
        ("one/bias:0", "one/bias"),
        ("tower/one_1/kernel:0", "one_1/kernel"),
        ("tower/one_1/bias:0", "one_1/bias"),
    ]
    assert elsewhere == _built_in_another_graph() == "one_1_1/kernel:0"


def _built_in_another_graph() -> str:
    with tf.Graph().as_default():
        shared, other = keras.layers.Dense(1, name="one"), keras.layers.Dense(1, name="one_1")
        other(shared(tf.ones([1, 1])))
        return str(other.kernel.value.name)


def accumulating(variable: Any) -> None:
    keras.optimizers.SGD(gradient_accumulation_steps=2).apply_gradients([(tf.constant(1.0), variable)])


def overwriting(variable: Any) -> None:
    optimizer = keras.optimizers.SGD(use_ema=True, ema_overwrite_frequency=2)
    optimizer.apply_gradients([(tf.constant(1.0), variable)])


def scaling(variable: Any) -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    optimizer.apply_gradients([(v1.placeholder(tf.float32, []), variable)])


@pytest.mark.parametrize(
    ("train", "names"),
    [
        (accumulating, "gradient_accumulation_steps=None"),
        (overwriting, "ema_overwrite_frequency=None"),
        (scaling, "LossScaleOptimizer"),
    ],
)
def test_keras_in_graph_refuses_updates_that_would_never_run(train: Callable[[Any], None], names: str) -> None:
    variable = keras.Variable(1.0)
    with keras_private.keras_in_graph(), pytest.raises(ValueError, match=names):
        train(variable)


def test_keras_in_graph_lets_a_tf_function_train() -> None:
    variable = keras.Variable(1.0)
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build([variable])

    @tf.function  # type: ignore[untyped-decorator]
    def step() -> Any:
        optimizer.apply_gradients([(tf.constant(1.0), variable)])
        return variable.value + 0.0

    with keras_private.keras_in_graph():
        trained = step()
    with session() as opened:
        assert [opened.run(trained) for _ in range(2)] == [0.5, 0.0]


def test_created_by_keras_tells_keras_variables_from_others() -> None:
    seen = {}

    def creator(next_creator: Any, **kwargs: Any) -> Any:
        variable = next_creator(**kwargs)
        seen[variable.op.name] = keras_private.created_by_keras()
        return variable

    class Layer(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.inner = self.add_weight(name="inner")

        def call(self, inputs: Any) -> Any:
            return inputs * self.inner

    with tf.variable_creator_scope(creator):
        Layer(name="layer")(tf.ones([1, 1]))
        keras.layers.LSTM(2, dropout=0.5, name="lstm")(tf.ones([1, 2, 3]), training=True)
        keras.Sequential([keras.layers.Dense(1, name="dense")], name="nested")(tf.ones([1, 1]))
        keras.Variable(1.0, name="alone")
        v1.get_variable("mine", [])
        tf.Variable(1.0, name="also_mine")
    mine = {name for name, by_keras in seen.items() if not by_keras}
    assert mine == {"mine", "also_mine"}
    assert len(seen) == 2 + 1 + 4 + 2 + 1


def test_is_keras_variable() -> None:
    variable = keras.Variable(1.0)
    assert keras_private.is_keras_variable(variable)
    assert keras_private.is_keras_variable(keras.optimizers.SGD().iterations)
    assert not keras_private.is_keras_variable(variable.value)
    assert not keras_private.is_keras_variable(tf.no_op())


def test_writes_input_looks_into_branches_and_loops() -> None:
    with tf.Graph().as_default() as graph:
        step = v1.train.create_global_step()
        other = v1.placeholder(tf.bool, [])

        def count() -> tf.Tensor:
            return tf.identity(v1.assign_add(step, 1))

        def look() -> tf.Tensor:
            return tf.identity(step)

        tf.cond(other, count, look, name="counts")
        tf.cond(other, look, lambda: look() + 1, name="looks")
        tf.cond(other, lambda: tf.cond(other, count, look), look, name="counts_within")

        def writes(name: str) -> bool:
            op = graph.get_operation_by_name(name)
            number = [tensor.name for tensor in op.inputs].index(step.handle.name)
            return graphs.writes_input(op, number)

        assert writes("counts")
        assert writes("counts_within")
        assert not writes("looks")


# TensorFlow: names


def test_public_name_of_tells_v1_names_from_others_and_from_private_ones() -> None:
    from tensorflow.python.ops import array_ops
    from tensorflow.python.training import training_util

    assert graphs.public_name_of(array_ops.placeholder) == "compat.v1.placeholder"
    assert graphs.public_name_of(array_ops.reshape) == "reshape"
    assert graphs.public_name_of(training_util._get_or_create_global_step_read) is None


def test_a_tasks_threads_follow_its_cpus() -> None:
    in_a_process("threads")


def test_ops_are_deterministic_after_they_were_made_so() -> None:
    in_a_process("determinism")
