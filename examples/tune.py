"""Tune `params` of an Estimator with Ray Tune: ASHA stops the trials that fall behind.

Each trial trains in its own Tune worker (`num_workers=0`: no Ray Train below Tune), in rounds. After each round it
evaluates and reports. A trial that is stopped, or whose worker dies, keeps its checkpoints in its own
model_dir. Run it as ``python examples/tune.py [directory]``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.train import ScalingConfig
from ray.tune.schedulers import ASHAScheduler

from ray_estimator import Estimator, EstimatorSpec, ModeKeys, RunConfig

ROUNDS = 8
STEPS_PER_ROUND = 25


def model_fn(features: Any, labels: Any, mode: str, params: dict[str, Any]) -> EstimatorSpec:
    """Fit a line to points by gradient descent."""
    import tensorflow as tf

    v1 = tf.compat.v1
    prediction = v1.get_variable("slope", []) * features + v1.get_variable("offset", [])
    loss = tf.reduce_mean(tf.square(prediction - labels))
    if mode == ModeKeys.EVAL:
        return EstimatorSpec(mode, loss=loss)
    optimizer = v1.train.MomentumOptimizer(params["learning_rate"], params["momentum"])
    return EstimatorSpec(mode, loss=loss, train_op=optimizer.minimize(loss, v1.train.get_global_step()))


def points() -> Any:
    """Return an endless stream of batches of 64 points."""
    import tensorflow as tf

    x = np.linspace(-1, 1, 1024, dtype=np.float32)
    return tf.data.Dataset.from_tensor_slices((x, 3 * x + 1)).shuffle(1024, seed=1).repeat().batch(64)


def trial(params: dict[str, Any]) -> None:
    """Train with `params` and report after each round. Runs in a Tune worker, again if that worker is lost."""
    context = tune.get_context()
    config = RunConfig(scaling_config=ScalingConfig(num_workers=0), tf_random_seed=1, progress=False)
    model_dir = os.path.join(params["directory"], context.get_trial_id())
    estimator = Estimator(model_fn, model_dir, config, params)
    for number in range(1, ROUNDS + 1):
        # An absolute step: a restarted trial skips the rounds that it has finished.
        estimator.train(points, max_steps=number * STEPS_PER_ROUND)
        results = estimator.evaluate(points, steps=16)
        tune.report({"loss": float(results["loss"]), "global_step": int(results["global_step"])})


def main(directory: str) -> tune.ResultGrid:
    """Try eight learning rates and print the best one."""
    ray.init(num_cpus=2, logging_level="error")
    space = {
        "learning_rate": tune.grid_search([3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5]),
        "momentum": 0.5,
        "directory": directory,
    }
    max_steps = ROUNDS * STEPS_PER_ROUND
    asha = ASHAScheduler("global_step", max_t=max_steps, grace_period=STEPS_PER_ROUND, reduction_factor=2)
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(metric="loss", mode="min", scheduler=asha, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=directory, name="tune", verbose=0),
    )
    results = tuner.fit()
    for result in sorted(results, key=lambda each: each.config["learning_rate"]):
        rate, metrics = result.config["learning_rate"], result.metrics
        print(f"learning rate {rate:<8g} step {metrics['global_step']:4}  loss {metrics['loss']:.6f}")
    best = results.get_best_result()
    print(f"best: learning rate {best.config['learning_rate']:g}, loss {best.metrics['loss']:.6f}")
    return results


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="tune-"))
    ray.shutdown()
