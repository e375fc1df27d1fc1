"""A module as programs for tf.estimator have them: it knows nothing of ray_estimator."""

import tensorflow as tf
import tensorflow.compat.v1 as v1
from tensorflow import estimator
from tensorflow.compat.v1 import estimator as v1_estimator


class CountSteps(tf.estimator.SessionRunHook):
    def begin(self):
        self.steps = 0

    def after_run(self, run_context, run_values):
        self.steps += 1


def model_fn(features, labels, mode, params):
    logits = v1.feature_column.linear_model(features, [v1.feature_column.numeric_column("x")], units=1)
    predictions = {"y": logits[:, 0]}
    if mode == tf.estimator.ModeKeys.PREDICT:
        outputs = {"serving_default": tf.estimator.export.PredictOutput(predictions)}
        return tf.estimator.EstimatorSpec(mode, predictions=predictions, export_outputs=outputs)
    loss = v1.losses.mean_squared_error(labels, predictions["y"])
    if mode == estimator.ModeKeys.EVAL:
        metrics = {"error": v1.metrics.mean_absolute_error(labels, predictions["y"])}
        return v1_estimator.EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)
    optimizer = v1.train.GradientDescentOptimizer(params["learning_rate"])
    train_op = optimizer.minimize(loss, v1.train.get_or_create_global_step())
    return estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)


def input_fn():
    x = [[0.0], [1.0], [2.0], [3.0]]
    return tf.data.Dataset.from_tensor_slices(({"x": x}, [0.0, 2.0, 4.0, 6.0])).repeat(40).batch(4)


def serving_input_receiver_fn():
    x = v1.placeholder(tf.float32, [None, 1], "x")
    return tf.estimator.export.ServingInputReceiver({"x": x}, {"x": x})
