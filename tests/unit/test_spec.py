"""EstimatorSpec: valid results of a model_fn in each mode. Graphs are built, but no session is opened."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from tensorflow.python.saved_model.model_utils import export_output

from ray_estimator.spec import EstimatorSpec, ModeKeys

ROOT = Path(__file__).resolve().parents[2]

v1 = tf.compat.v1
TRAIN, EVAL, PREDICT = ModeKeys.TRAIN, ModeKeys.EVAL, ModeKeys.PREDICT
EAGER = tf.constant(1.0)


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as graph:
        yield graph


def in_another_graph(make: Callable[[], Any]) -> Any:
    with tf.Graph().as_default():
        return make()


def loss() -> tf.Tensor:
    return tf.constant(1.0, name="loss")


def train_spec(**fields: Any) -> EstimatorSpec:
    return EstimatorSpec(TRAIN, **{"loss": loss(), "train_op": tf.no_op(), **fields})


def eval_spec(**fields: Any) -> EstimatorSpec:
    return EstimatorSpec(EVAL, **{"loss": loss(), **fields})


def predict_spec(**fields: Any) -> EstimatorSpec:
    return EstimatorSpec(PREDICT, **{"predictions": {"p": tf.constant([1.0])}, **fields})


def test_importing_the_module_imports_neither_tensorflow_nor_ray() -> None:
    modules = "spec", "config", "inputs", "_validation.user_functions", "_jobs.serialization"
    imports = "; ".join(f"import ray_estimator.{module}" for module in modules)
    code = f"import sys; {imports}; sys.exit(sorted({{'ray', 'tensorflow', 'keras'}} & set(sys.modules)) or 0)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)

    assert done.returncode == 0, done.stderr


def test_modes_are_those_of_tf_estimator() -> None:
    assert (TRAIN, EVAL, PREDICT) == ("train", "eval", "infer")


@pytest.mark.parametrize(
    ("mode", "given", "missing"),
    [
        (TRAIN, {"train_op"}, "Missing loss"),
        (TRAIN, {"loss"}, "Missing train_op"),
        (EVAL, {"predictions"}, "Missing loss"),
        (PREDICT, {"loss"}, "Missing predictions"),
    ],
)
def test_a_mode_needs_its_fields(mode: str, given: set[str], missing: str) -> None:
    fields = {"loss": loss(), "train_op": tf.no_op(), "predictions": loss()}

    with pytest.raises(ValueError, match=missing):
        EstimatorSpec(mode, **{name: fields[name] for name in given})


def test_every_mode_accepts_all_fields() -> None:
    fields = {"loss": loss(), "train_op": tf.no_op(), "predictions": loss()}

    assert [EstimatorSpec(mode, **fields).mode for mode in (TRAIN, EVAL, PREDICT)] == [TRAIN, EVAL, PREDICT]


def test_an_unknown_mode_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"mode must be one of .* got 'test'"):
        EstimatorSpec("test", loss=loss())


def test_omitted_fields_have_defaults() -> None:
    spec = train_spec()

    assert spec.predictions == {}
    assert spec.eval_metric_ops == {}
    assert spec.export_outputs is None
    assert isinstance(spec.scaffold, v1.train.Scaffold)
    assert spec.training_hooks == spec.training_chief_hooks == spec.evaluation_hooks == spec.prediction_hooks == ()


class TestLoss:
    def test_of_shape_one_becomes_a_scalar(self) -> None:
        assert eval_spec(loss=tf.constant([1.0])).loss.shape == []

    def test_scalar_is_kept_as_it_is(self) -> None:
        given = loss()

        assert eval_spec(loss=given).loss is given

    def test_of_unknown_shape_is_accepted(self) -> None:
        given = v1.placeholder(tf.float32)

        assert eval_spec(loss=given).loss is given

    def test_of_several_elements_is_rejected(self) -> None:
        with pytest.raises(ValueError, match=r"Loss must be scalar, got .*reduce_mean"):
            eval_spec(loss=tf.constant([1.0, 2.0]))

    @pytest.mark.parametrize(
        "make", [lambda: 1.0, lambda: tf.sparse.from_dense([1.0]), lambda: tf.ragged.constant([[1.0]])]
    )
    def test_that_is_not_a_tensor_is_rejected(self, make: Callable[[], Any]) -> None:
        with pytest.raises(TypeError, match="loss must be Tensor, got "):
            eval_spec(loss=make())


class TestAnotherGraph:
    @pytest.mark.parametrize(
        ("field", "make"),
        [
            ("loss", loss),
            ("train_op", tf.no_op),
            ("train_op", lambda: tf.Variable(1)),
            ("train_op", lambda: keras.Variable(1)),
            ("predictions", loss),
            ("predictions", lambda: {"p": loss()}),
            ("predictions", lambda: {"p": tf.sparse.from_dense([1.0])}),
            ("eval_metric_ops", lambda: {"m": (loss(), tf.no_op())}),
            ("eval_metric_ops", lambda: {"m": ({"a": loss()}, tf.no_op())}),
        ],
    )
    def test_is_rejected(self, field: str, make: Callable[[], Any]) -> None:
        with pytest.raises(ValueError, match=rf'{field}.* with ".*" must be from the default graph\. Possible causes'):
            train_spec(**{field: in_another_graph(make)})

    def test_an_update_op_from_there_is_rejected(self) -> None:
        metric = (loss(), in_another_graph(tf.no_op))

        with pytest.raises(ValueError, match="must be from the default graph"):
            eval_spec(eval_metric_ops={"m": metric})

    def test_a_keras_metric_from_there_is_rejected(self) -> None:
        def updated() -> keras.metrics.Metric:
            metric = keras.metrics.Mean()
            metric.update_state([1.0])
            return metric

        with pytest.raises(ValueError, match="must be from the default graph"):
            eval_spec(eval_metric_ops={"m": in_another_graph(updated)})

    def test_an_eager_tensor_is_rejected(self) -> None:
        with pytest.raises(ValueError, match="must be from the default graph"):
            eval_spec(loss=EAGER)


class TestTrainOp:
    def test_operation_and_tensor_are_kept(self) -> None:
        op, tensor = tf.no_op(), loss()

        assert train_spec(train_op=op).train_op is op
        assert train_spec(train_op=tensor).train_op is tensor

    def test_the_result_of_assign_add_becomes_its_assignment(self) -> None:
        assert train_spec(train_op=tf.Variable(0).assign_add(1)).train_op.type == "AssignAddVariableOp"

    def test_a_variable_becomes_its_op(self) -> None:
        variable = tf.Variable(0)

        assert train_spec(train_op=variable).train_op is variable.op

    def test_the_result_of_a_keras_optimizer_becomes_an_op(self) -> None:
        weight = keras.Variable(1.0)
        iterations = keras.optimizers.SGD().apply_gradients([(tf.constant(1.0), weight)])

        assert train_spec(train_op=iterations).train_op is iterations.value.op

    @pytest.mark.parametrize("value", [1, "minimize", lambda: tf.no_op()])
    def test_of_another_type_is_rejected(self, value: Any) -> None:
        with pytest.raises(TypeError, match="train_op must be Operation or Tensor, got "):
            train_spec(train_op=value)


class TestUnderAStrategy:
    @pytest.fixture
    def strategy(self) -> Iterator[tf.distribute.Strategy]:
        strategy = tf.distribute.MirroredStrategy(["CPU:0"])
        with strategy.scope():
            yield strategy

    def test_a_model_built_in_a_replica_is_accepted(self, strategy: tf.distribute.Strategy) -> None:
        step = v1.train.create_global_step()
        specs: list[EstimatorSpec] = []

        def model_fn() -> None:
            weight = v1.get_variable("w", [], initializer=v1.zeros_initializer())
            metric = keras.metrics.Mean()
            metric.update_state(weight)
            train_op = v1.train.GradientDescentOptimizer(0.1).minimize(2.0 * weight, global_step=step)
            specs.append(train_spec(loss=2.0 * weight, train_op=train_op, eval_metric_ops={"m": metric}))
            specs.append(train_spec(train_op=weight, predictions=weight))

        strategy.extended.call_for_each_replica(model_fn)

        assert isinstance(specs[0].train_op, tf.Tensor | tf.Operation)
        assert isinstance(specs[1].train_op, tf.Operation)

    def test_values_of_all_replicas_are_accepted(self, strategy: tf.distribute.Strategy) -> None:
        weight = v1.get_variable("w", [], initializer=v1.zeros_initializer())
        per_replica = per_replica_value(loss())

        spec = train_spec(loss=per_replica, train_op=weight, predictions={"p": per_replica})

        assert isinstance(weight, tf.distribute.DistributedValues)
        assert spec.loss is per_replica

    def test_values_of_all_replicas_in_another_graph_are_rejected(self, strategy: tf.distribute.Strategy) -> None:
        with pytest.raises(ValueError, match="must be from the default graph"):
            train_spec(loss=per_replica_value(in_another_graph(loss)))


def per_replica_value(*values: Any) -> Any:
    from tensorflow.python.distribute.values import PerReplica

    return PerReplica(values)


class TestPredictions:
    def test_may_be_a_tensor_or_a_dict_of_tensors_of_any_kind(self) -> None:
        kinds = {"dense": loss(), "sparse": tf.sparse.from_dense([1.0]), "ragged": tf.ragged.constant([[1.0]])}

        assert eval_spec(predictions=kinds).predictions is kinds
        assert eval_spec(predictions=kinds["dense"]).predictions is kinds["dense"]

    @pytest.mark.parametrize("value", [1.0, {"p": 1.0}, {"p": {"q": None}}])
    def test_of_another_type_are_rejected(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"predictions.* must be Tensor"):
            predict_spec(predictions=value)


class TestMetrics:
    def test_tuples_with_nested_values_are_accepted(self) -> None:
        metrics = {"v1": v1.metrics.mean([1.0]), "nested": ({"a": loss(), "b": [loss()]}, tf.no_op())}

        assert eval_spec(eval_metric_ops=metrics).eval_metric_ops == metrics

    @pytest.mark.parametrize("flavour", ["keras", "tf_keras"])
    def test_an_updated_keras_metric_is_kept(self, flavour: str) -> None:
        metric = pytest.importorskip(flavour).metrics.Mean()
        metric.update_state([1.0])

        assert eval_spec(eval_metric_ops={"m": metric}).eval_metric_ops["m"] is metric

    @pytest.mark.parametrize("flavour", ["keras", "tf_keras"])
    def test_a_keras_metric_that_is_only_read_is_rejected(self, flavour: str) -> None:
        metric = pytest.importorskip(flavour).metrics.Mean()
        metric.result()

        with pytest.raises(ValueError, match=r'Please call update_state\(\.\.\.\) on the "m" metric'):
            eval_spec(eval_metric_ops={"m": metric})

    @pytest.mark.parametrize("metric", [1.0, (1.0,), [1.0, 2.0], None])
    def test_of_another_type_are_rejected(self, metric: Any) -> None:
        with pytest.raises(TypeError, match=r"must be \(metric_value, update_op\) tuples"):
            eval_spec(eval_metric_ops={"m": metric})

    def test_a_tuple_of_other_things_is_rejected(self) -> None:
        with pytest.raises(TypeError, match=r"eval_metric_ops\['m'\] must be made of Tensors"):
            eval_spec(eval_metric_ops={"m": (loss(), "update")})

    def test_must_be_a_dict(self) -> None:
        with pytest.raises(TypeError, match="eval_metric_ops must be a dict"):
            eval_spec(eval_metric_ops=[v1.metrics.mean([1.0])])


class TestHooksAndScaffold:
    FIELDS = ("training_hooks", "training_chief_hooks", "evaluation_hooks", "prediction_hooks")

    @pytest.mark.parametrize("field", FIELDS)
    def test_a_list_of_hooks_becomes_a_tuple(self, field: str) -> None:
        hook = v1.train.StopAtStepHook(1)

        assert getattr(train_spec(**{field: [hook]}), field) == (hook,)

    def test_any_iterable_of_hooks_is_accepted(self) -> None:
        hooks = [v1.train.StopAtStepHook(1), v1.train.StopAtStepHook(2)]

        assert train_spec(training_hooks=(hook for hook in hooks)).training_hooks == tuple(hooks)

    @pytest.mark.parametrize("field", FIELDS)
    def test_other_objects_than_hooks_are_rejected(self, field: str) -> None:
        with pytest.raises(TypeError, match=rf"All hooks must be SessionRunHook instances, got .* in {field}"):
            train_spec(**{field: [lambda: v1.train.StopAtStepHook(1)]})

    def test_one_hook_outside_a_list_is_rejected(self) -> None:
        with pytest.raises(TypeError, match="training_hooks must be a list of hooks"):
            train_spec(training_hooks=v1.train.StopAtStepHook(1))

    def test_a_scaffold_is_kept(self) -> None:
        scaffold = v1.train.Scaffold()

        assert train_spec(scaffold=scaffold).scaffold is scaffold

    def test_another_scaffold_is_rejected(self) -> None:
        with pytest.raises(TypeError, match="scaffold must be"):
            train_spec(scaffold="saver")


class TestExportOutputs:
    def test_default_is_the_predictions(self) -> None:
        predictions = {"p": tf.constant([1.0])}

        (name, output), *others = predict_spec(predictions=predictions).export_outputs.items()

        assert not others
        assert name == "serving_default"
        assert isinstance(output, export_output.PredictOutput)
        assert output.outputs == predictions

    def test_a_single_one_becomes_the_default_too(self) -> None:
        given = {"mine": export_output.PredictOutput(loss())}

        outputs = predict_spec(export_outputs=given).export_outputs

        assert outputs == {"mine": given["mine"], "serving_default": given["mine"]}
        assert list(given) == ["mine"]

    def test_several_with_a_default_are_kept(self) -> None:
        given = {name: export_output.PredictOutput(loss()) for name in ("mine", "serving_default")}

        assert predict_spec(export_outputs=given).export_outputs == given

    def test_an_empty_dict_stays_empty(self) -> None:
        assert predict_spec(export_outputs={}).export_outputs == {}

    def test_several_without_a_default_are_rejected(self) -> None:
        given = {name: export_output.PredictOutput(loss()) for name in ("a", "b")}

        with pytest.raises(ValueError, match="Multiple `export_outputs` were provided, but none of them"):
            predict_spec(export_outputs=given)

    @pytest.mark.parametrize("given", [[], "serving_default", {"mine": 1}])
    def test_of_another_type_are_rejected(self, given: Any) -> None:
        with pytest.raises(TypeError, match=r"(?i)export_?outputs.* must be"):
            predict_spec(export_outputs=given)

    def test_are_ignored_in_other_modes(self) -> None:
        assert train_spec(export_outputs={"a": 1, "b": 2}).export_outputs == {"a": 1, "b": 2}


def test_the_fields_are_tf_estimators() -> None:
    fields = "mode predictions loss train_op eval_metric_ops export_outputs training_chief_hooks training_hooks"

    assert EstimatorSpec._fields == (*fields.split(), "scaffold", "evaluation_hooks", "prediction_hooks")
    with pytest.raises(TypeError, match="extra_ops"):
        train_spec(extra_ops={"op": tf.no_op()})


class TestReplace:
    def test_changes_a_field_and_leaves_the_others(self) -> None:
        spec, other = train_spec(), loss()

        changed = spec._replace(loss=other)

        assert isinstance(changed, EstimatorSpec)
        assert changed.loss is other
        assert changed.train_op is spec.train_op

    def test_checks_again(self) -> None:
        with pytest.raises(TypeError, match="loss must be Tensor"):
            train_spec()._replace(loss=1.0)

    def test_rejects_another_mode(self) -> None:
        with pytest.raises(ValueError, match="mode of EstimatorSpec cannot be changed"):
            train_spec()._replace(mode=EVAL)

    def test_accepts_the_same_mode(self) -> None:
        assert train_spec()._replace(mode=TRAIN).mode == TRAIN
