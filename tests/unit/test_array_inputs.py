"""Argument checks of `numpy_input_fn` and `pandas_input_fn`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ray_estimator.inputs import numpy_input_fn, pandas_input_fn

X = np.arange(6.0).reshape(3, 2)
Y = np.arange(3)
FRAME = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})


@pytest.mark.parametrize("shuffle", [None, 1, "yes"])
def test_shuffle_must_be_given_as_a_bool(shuffle: Any) -> None:
    for make in (lambda: numpy_input_fn(X, Y, shuffle=shuffle), lambda: pandas_input_fn(FRAME, shuffle=shuffle)):
        with pytest.raises(ValueError, match="shuffle must be provided and explicitly set as boolean"):
            make()


@pytest.mark.parametrize("labels", [np.arange(2), {"z": np.arange(4)}])
def test_arrays_of_different_length_are_refused_by_name(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"Length of tensors in x and y is mismatched.* 3 in x\['y'\], . in y"):
        numpy_input_fn({"y": X}, labels, shuffle=False)


def test_features_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="mismatched"):
        numpy_input_fn({"a": X, "b": np.arange(4)}, shuffle=False)


def test_empty_dicts_are_refused() -> None:
    with pytest.raises(ValueError, match="x cannot be an empty dict"):
        numpy_input_fn({}, Y, shuffle=False)
    with pytest.raises(ValueError, match="y cannot be an empty dict, use None instead"):
        numpy_input_fn(X, {}, shuffle=False)


def test_keys_in_both_dicts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"duplicate keys: \['a'\]"):
        numpy_input_fn({"a": X, "b": X}, {"a": Y}, shuffle=False)


@pytest.mark.parametrize("x", [[1, 2, 3], "abc", None])
def test_features_must_be_arrays(x: Any) -> None:
    with pytest.raises(TypeError, match="x must be a dict or array"):
        numpy_input_fn(x, shuffle=False)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "batch_size should be > 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an int"),
        ({"num_epochs": 0}, ValueError, "num_epochs should be > 0"),
        ({"num_threads": 0}, ValueError, "num_threads should be > 0"),
        ({"queue_capacity": "many"}, TypeError, "queue_capacity must be an int"),
    ],
)
def test_numbers_are_checked(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        numpy_input_fn(X, shuffle=False, **arguments)


def test_a_scalar_has_no_rows() -> None:
    with pytest.raises(ValueError, match=r"x\['a'\] must have a dimension of rows"):
        numpy_input_fn({"a": np.array(1.0)}, shuffle=False)


def test_values_without_a_tensorflow_dtype_are_named() -> None:
    with pytest.raises(TypeError, match=r"x\['a'\] must hold numbers, bools or text, got None in row 1"):
        numpy_input_fn({"a": np.array(["x", None])}, shuffle=False)
    with pytest.raises(TypeError, match=r"x\['when'\].*datetime64"):
        pandas_input_fn(pd.DataFrame({"when": pd.to_datetime(["2020-01-01"])}), shuffle=False)


def test_pandas_requires_frames() -> None:
    with pytest.raises(TypeError, match=r"x must be a pandas\.DataFrame"):
        pandas_input_fn({"a": [1]}, shuffle=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"y must be a pandas\.Series"):
        pandas_input_fn(FRAME, [1, 2, 3], shuffle=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="target_column must be a string"):
        pandas_input_fn(FRAME, shuffle=False, target_column=1)  # type: ignore[arg-type]


def test_indexes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="Index for x and y are mismatched"):
        pandas_input_fn(FRAME, pd.Series([1, 2, 3], index=[7, 8, 9]), shuffle=False)


def test_duplicate_columns_are_refused() -> None:
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(ValueError, match=r"duplicate columns: \['a'\]"):
        pandas_input_fn(twice, shuffle=False)
    with pytest.raises(ValueError, match="at least one column"):
        pandas_input_fn(pd.DataFrame(index=[0]), shuffle=False)


def test_making_the_input_imports_no_tensorflow() -> None:
    code = (
        "import sys, numpy as np; from ray_estimator.inputs import numpy_input_fn\n"
        "numpy_input_fn(np.zeros(3), shuffle=True); print('tensorflow' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False False"
