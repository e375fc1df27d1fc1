"""Runs parts of `graph_parts` after `disable_v2_behavior()`, as most old programs do. For a process of its own.

References instead of resource variables, v1 control flow, v1 shapes: switches for a whole process.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow.compat.v1 as tf
from ray.train import ScalingConfig
from support.graph_oracles import ORACLES
from support.graph_parts import PARTS, STEPS, WORDS, input_fn, model_fn

from ray_estimator import Estimator, RunConfig


def close(actual: object, expected: object) -> bool:
    array = np.asarray(actual)
    if array.dtype.kind in "SO":
        return bool(np.array_equal(array, expected))
    tolerance = 1e-2 if array.dtype == np.float16 else 1e-4
    return bool(np.allclose(array, expected, rtol=tolerance, atol=tolerance / 10))


def check(name: str, folder: Path) -> list[str]:
    """What is not as said by hand, in train, evaluate and predict."""
    params = {"parts": [name], "vocabulary": str(folder / "vocabulary.txt"), "gan_steps": 1}
    config = RunConfig(scaling_config=ScalingConfig(num_workers=0))
    estimator = Estimator(model_fn, folder / name, config, params).train(input_fn)
    variables, predictions = ORACLES[name]()
    wrong = [
        f"{name}/{variable}: {estimator.get_variable_value(f'{name}/{variable}')} for {expected}"
        for variable, expected in variables.items()
        if not close(estimator.get_variable_value(f"{name}/{variable}"), expected)
    ]
    rows = list(estimator.predict(input_fn))
    wrong += [
        f"{name}: predicted {key}"
        for key, expected in predictions.items()
        if not close(np.stack([row[f"{name}/{key}"] for row in rows]), expected)
    ]
    result = estimator.evaluate(input_fn)
    if result["global_step"] != STEPS or not close(result[f"{name}/loss"], result["loss"]):
        wrong.append(f"{name}: evaluated {result}")
    return wrong


def main(folder: Path) -> None:
    tf.disable_v2_behavior()
    folder.mkdir()
    (folder / "vocabulary.txt").write_text("\n".join(WORDS) + "\n")
    assert not tf.executing_eagerly()
    assert not tf.resource_variables_enabled()
    assert not tf.control_flow_v2_enabled()
    failures: dict[str, object] = {}
    for name in PARTS:
        try:
            wrong = check(name, folder)
        except Exception as error:
            wrong = [f"{type(error).__name__}: {error}"]
        if wrong:
            failures[name] = wrong
    assert not failures, "\n".join(f"{name}: {wrong}" for name, wrong in failures.items())
