"""The heads and canned estimators of the package tensorflow-estimator train here, as they are.

They are written for Keras 2, so they run in processes of their own with TF_USE_LEGACY_KERAS=1; what needs no Keras
runs beside Keras 3, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
FAMILIES = ("Baseline", "DNN", "DNNLinearCombined", "Linear")
CANNED = [f"{family},{kind}" for family in FAMILIES for kind in ("Classifier", "Regressor", "Estimator")]
CLASSES = ["all_class_ids", "all_classes", "class_ids", "classes"]
HEADS = {
    "binary_class_head": [*CLASSES, "logistic", "logits", "probabilities"],
    "logistic_regression_head": ["logits", "predictions"],
    "multi_class_head": [*CLASSES, "logits", "probabilities"],
    "multi_label_head": ["classes", "logits", "probabilities"],
    "poisson_regression_head": ["logits", "predictions"],
    "regression_head": ["predictions"],
}


def run(names: list[str], legacy_keras: bool) -> dict[str, Any]:
    """What the script shows of each of `names`."""
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": str(int(legacy_keras))}
    command = [sys.executable, Path(__file__).parent / "canned_script.py", *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line.split(" ", 2) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return {name: json.loads(result) for _, name, result in lines}


def result_of(results: dict[str, Any], name: str) -> dict[str, Any]:
    result: dict[str, Any] = results[name]
    assert "error" not in result, result
    return result


@pytest.fixture(scope="module")
def of_tf_compat_v1() -> dict[str, Any]:
    return run([f"canned_v1:{name}" for name in CANNED], legacy_keras=True)


@pytest.fixture(scope="module")
def of_tf() -> dict[str, Any]:
    return run(["rnn", "linear_sdca", *(f"canned_v2:{name}" for name in CANNED)], legacy_keras=True)


@pytest.fixture(scope="module")
def heads() -> dict[str, Any]:
    return run([*HEADS, "multi_head"], legacy_keras=True)


@pytest.fixture(scope="module")
def beside_keras_3() -> dict[str, Any]:
    names = ["old_multi_class_head", "kmeans", "canned_v1:DNN,Classifier", "binary_class_head"]
    baselines = [f"canned_v1:Baseline,{kind}" for kind in ("Classifier", "Regressor", "Estimator")]
    return run([*names, "canned_v2:Baseline,Regressor", *baselines], legacy_keras=False)


def assert_learns(result: dict[str, Any], name: str) -> None:
    assert result["loss"] < 0.5 * result["before"], result
    assert result["global_step"] == 160
    assert result["rows"] == 3
    assert result["predictions"] == (["predictions"] if "Regressor" in name else HEADS["binary_class_head"])
    if not name.endswith("Regressor"):
        assert result["accuracy"] > 0.9


@pytest.mark.parametrize("name", CANNED)
def test_a_canned_estimator_of_tf_compat_v1_learns(of_tf_compat_v1: dict[str, Any], name: str) -> None:
    assert_learns(result_of(of_tf_compat_v1, f"canned_v1:{name}"), name)


@pytest.mark.parametrize("name", CANNED)
def test_a_canned_estimator_of_tf_learns(of_tf: dict[str, Any], name: str) -> None:
    assert_learns(result_of(of_tf, f"canned_v2:{name}"), name)


def test_an_rnn_classifier_learns(of_tf: dict[str, Any]) -> None:
    assert result_of(of_tf, "rnn")["accuracy"] > 0.95


def test_a_linear_classifier_learns_by_dual_coordinate_ascent(of_tf: dict[str, Any]) -> None:
    assert_learns(result_of(of_tf, "linear_sdca"), "Linear,Classifier")


@pytest.mark.parametrize("name", HEADS)
def test_a_head_serves_a_model_fn_in_every_mode(heads: dict[str, Any], name: str) -> None:
    result = result_of(heads, name)
    assert result["loss"] < result["before"], result
    assert result["global_step"] == 160
    assert result["predictions"] == HEADS[name]
    assert "serving_default" in result["signatures"]
    if name == "binary_class_head":
        assert result["accuracy"] > 0.9
        assert {"classification", "predict", "regression"} <= set(result["signatures"])


def test_several_heads_serve_as_one(heads: dict[str, Any]) -> None:
    result = result_of(heads, "multi_head")
    assert result["loss"] == pytest.approx(result["loss/first"] + result["loss/second"], rel=1e-4)
    assert result["loss"] < 0.5 * result["before"]
    assert result["accuracy/first"] > 0.9
    assert "first/predict" in result["signatures"]


@pytest.mark.parametrize("kind", ["Classifier", "Regressor", "Estimator"])
def test_a_baseline_of_tf_compat_v1_needs_no_legacy_keras(beside_keras_3: dict[str, Any], kind: str) -> None:
    assert_learns(result_of(beside_keras_3, f"canned_v1:Baseline,{kind}"), f"Baseline,{kind}")


def test_an_old_head_needs_no_legacy_keras(beside_keras_3: dict[str, Any]) -> None:
    result = result_of(beside_keras_3, "old_multi_class_head")
    assert result["loss"] < 0.8 * result["before"]


def test_kmeans_finds_the_centers(beside_keras_3: dict[str, Any]) -> None:
    assert result_of(beside_keras_3, "kmeans")["centers"] == pytest.approx([0, 20], abs=0.5)


@pytest.mark.parametrize("name", ["canned_v1:DNN,Classifier", "canned_v2:Baseline,Regressor"])
def test_a_canned_estimator_beside_keras_3_says_at_once_what_to_do(beside_keras_3: dict[str, Any], name: str) -> None:
    error = beside_keras_3[name]["error"]
    assert error.startswith("ValueError")
    assert "RunConfig(legacy_keras=True" in error
    assert "TF_USE_LEGACY_KERAS=1" in error


def test_a_head_beside_keras_3_says_what_to_do(beside_keras_3: dict[str, Any]) -> None:
    result = beside_keras_3["binary_class_head"]
    assert "error" in result
    assert "RunConfig(legacy_keras=True)" in result["notes"][0]
