"""A program for tf.estimator, with `install()` at its head: `old_program.py MODEL_DIR NUM_WORKERS reference|value`.

`reference` takes its functions from a module that workers import; `value` has them in the script itself.
"""

import json
import sys

import ray_estimator

ray_estimator.install()

# ruff: noqa: E402
import numpy as np
import tensorflow as tf
from ray.train import ScalingConfig
from support import old_model
from tensorflow import estimator


def model_fn(features, labels, mode, params):
    spec = old_model.model_fn(features, labels, mode, params)
    assert isinstance(spec, tf.estimator.EstimatorSpec)
    return estimator.EstimatorSpec(
        mode, spec.predictions, spec.loss, spec.train_op, eval_metric_ops=spec.eval_metric_ops
    )


X = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
numpy_inputs = tf.compat.v1.estimator.inputs.numpy_input_fn({"x": X}, 2 * X[:, 0], 4, num_epochs=40, shuffle=False)


def main(model_dir, num_workers, how):
    own = {"reference": (old_model.model_fn, old_model.input_fn), "value": (model_fn, numpy_inputs)}
    model, inputs = own[how]
    config = tf.estimator.RunConfig(model_dir, scaling_config=ScalingConfig(num_workers=int(num_workers)))
    trained = tf.estimator.Estimator(model, config=config, params={"learning_rate": 0.1})
    trained.train(inputs, steps=40, hooks=[old_model.CountSteps()])
    exported = trained.export_savedmodel(f"{model_dir}/export", old_model.serving_input_receiver_fn)
    result = {key: float(value) for key, value in trained.evaluate(inputs).items()}
    rows = [float(row["y"]) for _, row in zip(range(4), trained.predict(inputs), strict=False)]
    print(json.dumps({"result": result, "rows": rows, "exported": exported}))


if __name__ == "__main__":
    main(*sys.argv[1:])
