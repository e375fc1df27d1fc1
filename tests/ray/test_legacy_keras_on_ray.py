"""Legacy Keras on workers and in tasks, where the driver has Keras 3."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support import worlds
from support.probes import NoteLosses, NoteMasks, notes

from ray_estimator import export

v1 = tf.compat.v1
pytestmark = pytest.mark.ray

STEPS = 60
RECEIVER_FN = export.build_raw_serving_input_receiver_fn(
    {"x": tf.TensorSpec([None, worlds.NUM_FLOATS]), "ids": tf.TensorSpec([None, worlds.SEQUENCE_LENGTH], tf.int32)}
)


def test_a_legacy_model_trains_on_two_workers_evaluates_predicts_and_serves(
    on_ray: Callable[..., Any], tmp_path: Path
) -> None:
    make = partial(on_ray, worlds.legacy_model_fn, legacy_keras=True)
    estimator = make()
    hooks = [partial(NoteLosses, str(tmp_path)), partial(NoteMasks, str(tmp_path))]
    estimator.train(worlds.endless_input_fn, steps=STEPS, hooks=hooks)

    losses = [loss for _, loss in notes(tmp_path, "loss")[0]]
    assert len(losses) == STEPS
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    for of_rank in notes(tmp_path, "masks").values():
        assert len({str(mask) for mask in of_rank}) == 3

    result = estimator.evaluate(worlds.one_pass_input_fn)
    assert result["global_step"] == STEPS
    assert result["accuracy"] > 0.75
    moving = [name for name in estimator.get_variable_names() if name.endswith("moving_mean")]
    assert moving
    assert all(np.abs(estimator.get_variable_value(name)).max() > 1e-3 for name in moving)

    before = [row["probability"] for row in estimator.predict(worlds.one_pass_input_fn)]
    after = [row["probability"] for row in make().predict(worlds.one_pass_input_fn)]
    assert len(before) == worlds.NUM_ROWS
    np.testing.assert_array_equal(before, after)

    served = tf.saved_model.load(estimator.export_saved_model(tmp_path / "export", RECEIVER_FN))
    answer = served.signatures["serving_default"](x=tf.constant(worlds.X), ids=tf.constant(worlds.IDS))
    np.testing.assert_allclose(answer["probability"], before, rtol=1e-5)
