"""The whole way in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.models import X, Y, endless_input_fn, linear_model_fn, one_pass_input_fn


def test_train_evaluate_predict(in_process: Callable[..., Any]) -> None:
    estimator = in_process(linear_model_fn, params={"learning_rate": 0.1})
    estimator.train(endless_input_fn, steps=200)
    result = estimator.evaluate(one_pass_input_fn)
    assert result["global_step"] == 200
    assert result["loss"] < 1e-3
    predicted = np.stack([row["y"] for row in estimator.predict(one_pass_input_fn)])
    assert predicted == pytest.approx(Y, abs=0.1)
    assert np.array_equal(np.stack([row["x"] for row in estimator.predict(one_pass_input_fn)]), X)
