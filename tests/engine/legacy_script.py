"""Trains the legacy world in this process, which has TF_USE_LEGACY_KERAS=1: `legacy_script.py MODEL_DIR`.

It says nothing of the variable itself to TensorFlow: that is for the environment of the process.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
from ray.train import ScalingConfig
from support.worlds import NUM_ROWS, endless_input_fn, legacy_model_fn, one_pass_input_fn

from ray_estimator import Estimator, RunConfig

v1 = tf.compat.v1


class Watch(v1.train.SessionRunHook):
    """Remembers losses and dropout masks."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.masks: list[bytes] = []

    def before_run(self, run_context: Any) -> Any:
        (loss,) = v1.get_collection(v1.GraphKeys.LOSSES)
        return v1.train.SessionRunArgs((loss, "kept:0"))

    def after_run(self, run_context: Any, run_values: Any) -> None:
        loss, kept = run_values.results
        self.losses.append(float(loss))
        self.masks.append(kept.tobytes())


def main(model_dir: str) -> None:
    def estimator() -> Estimator:
        config = RunConfig(scaling_config=ScalingConfig(num_workers=0), legacy_keras=True, tf_random_seed=1)
        return Estimator(legacy_model_fn, model_dir, config)

    watch = Watch()
    trained = estimator().train(endless_input_fn, steps=60, hooks=[watch])
    assert np.mean(watch.losses[-10:]) < 0.6 * np.mean(watch.losses[:5]), watch.losses
    assert len(set(watch.masks)) == 60, "dropout masks repeat"
    assert trained.get_variable_value("global_step") == 60
    moved = trained.get_variable_value("batch_normalization/moving_mean")
    assert np.abs(moved).max() > 0, "UPDATE_OPS did not run"

    result = trained.evaluate(one_pass_input_fn)
    assert result["accuracy"] > 0.8, result
    assert abs(result["accuracy"] - result["keras_accuracy"]) < 1e-6, result

    def predicted(of: Estimator) -> np.ndarray:
        return np.stack([row["probability"] for row in of.predict(one_pass_input_fn)])

    before = predicted(trained)
    assert before.shape == (NUM_ROWS, 1)
    assert np.array_equal(predicted(estimator()), before)

    trained.train(endless_input_fn, steps=2)
    assert trained.get_variable_value("global_step") == 62
    assert not np.array_equal(trained.get_variable_value("batch_normalization/moving_mean"), moved)
    print("the legacy world works")


if __name__ == "__main__":
    main(sys.argv[1])
