"""The parts of `graph_parts` on two ranks, each with half of every batch: the numbers are those of one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.graph_oracles import BATCHES, ORACLES
from support.graph_parts import PARTS, RATE, STEPS, WORDS, input_fn, model_fn
from support.probes import note, notes

v1 = tf.compat.v1

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
HALF_TOLERANCE = {"rtol": 1e-2, "atol": 1e-2}
OF_THE_WHOLE_GRAPH = {"regularized", "gan"}  # their losses and steps go by collections of the whole graph
BY_REPLICA = {"clipped"}  # where each worker clips the gradient of its own rows


class NoteVariables(v1.train.SessionRunHook):
    """Notes the digest of what this rank holds of every variable."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def end(self, session: Any) -> None:
        digests = {}
        for variable in v1.global_variables():
            value = session.run(getattr(variable, "values", [variable])[0])
            digests[variable.name] = hashlib.sha256(np.asarray(value).tobytes()).hexdigest()
        note(self._folder, "variables", digests)


@pytest.fixture
def make(on_ranks: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")

    def make_parts(*names: str) -> Any:
        return on_ranks(model_fn, params={"parts": names, "vocabulary": str(vocabulary), "gan_steps": 1})

    return make_parts


def assert_close(actual: Any, expected: Any, name: str) -> None:
    if np.asarray(actual).dtype.kind in "SO":
        np.testing.assert_array_equal(actual, expected, err_msg=name)
    else:
        tolerance = HALF_TOLERANCE if np.asarray(actual).dtype == np.float16 else TOLERANCE
        np.testing.assert_allclose(actual, expected, err_msg=name, **tolerance)


def expected_of(names: Iterable[str], kind: int) -> dict[str, Any]:
    """The variables (0) or predictions (1) of parts, under their names in the model."""
    return {f"{name}/{key}": value for name in names for key, value in ORACLES[name]()[kind].items()}


def checkpoint_of(estimator: Any) -> dict[str, Any]:
    reader = tf.train.load_checkpoint(estimator.latest_checkpoint())
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def clipped_by_two() -> np.ndarray:
    weight = np.zeros(3)
    for step, batch in enumerate(BATCHES):
        for half in np.split(batch, 2):
            gradient = 10 * half.mean(axis=0) / 2
            weight = weight - RATE * 0.5**step * gradient / max(1.0, np.linalg.norm(gradient))
    return weight


def test_the_parts_train_on_two_workers_as_on_one(make: Callable[..., Any], tmp_path: Path) -> None:
    names = sorted(set(PARTS) - OF_THE_WHOLE_GRAPH)
    equal = sorted(set(names) - BY_REPLICA)
    estimator = make(*names).train(input_fn, hooks=[partial(NoteVariables, str(tmp_path))])

    values = checkpoint_of(estimator)
    assert values.pop("global_step") == STEPS
    assert_close(values.pop("clipped/weight"), clipped_by_two(), "clipped")
    expected = expected_of(equal, 0)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert_close(value, expected[name], name)
    (of_first,), (of_second,) = (notes(tmp_path, "variables")[rank] for rank in (0, 1))
    assert of_first == of_second
    assert len(of_first) == len(values) + 2

    rows = list(estimator.predict(input_fn, predict_keys=list(expected_of(equal, 1))))
    for name, value in expected_of(equal, 1).items():
        assert_close(np.stack([row[name] for row in rows]), value, name)
    result = estimator.evaluate(input_fn)
    for name in equal:
        if "score" in ORACLES[name]()[1]:
            assert_close(result[f"{name}/loss"], np.mean(ORACLES[name]()[1]["score"]), name)


def test_two_optimizers_and_losses_by_collections_on_two_workers(make: Callable[..., Any]) -> None:
    estimator = make(*sorted(OF_THE_WHOLE_GRAPH)).train(input_fn)

    values = checkpoint_of(estimator)
    assert values.pop("global_step") == STEPS
    expected = expected_of(OF_THE_WHOLE_GRAPH, 0)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert_close(value, expected[name], name)
