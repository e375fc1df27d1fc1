"""A program for tf.estimator, with `install()` at its head: `old_program.py MODEL_DIR`.

Its functions come from a module that workers import.
"""

import json
import sys

import ray_estimator

ray_estimator.install()

# ruff: noqa: E402
import tensorflow as tf
from ray.train import ScalingConfig
from support import old_model


def main(model_dir):
    config = tf.estimator.RunConfig(model_dir, scaling_config=ScalingConfig(num_workers=2))
    trained = tf.estimator.Estimator(old_model.model_fn, config=config, params={"learning_rate": 0.1})
    trained.train(old_model.input_fn, steps=40, hooks=[old_model.CountSteps()])
    exported = trained.export_savedmodel(f"{model_dir}/export", old_model.serving_input_receiver_fn)
    result = {key: float(value) for key, value in trained.evaluate(old_model.input_fn).items()}
    rows = [float(row["y"]) for _, row in zip(range(4), trained.predict(old_model.input_fn), strict=False)]
    print(json.dumps({"result": result, "rows": rows, "exported": exported}))


if __name__ == "__main__":
    main(sys.argv[1])
