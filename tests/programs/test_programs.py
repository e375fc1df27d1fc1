"""Ten tf.estimator programs run unchanged after `install()`, in process and on two workers.

Workers are two plain processes. Programs that need legacy Keras, or evaluate while they train, use Ray's workers.
The programs do not depend on the tests. Each model must beat a simple baseline that was fitted to the test labels.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_program
import tensorflow as tf
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import pairwise_distances, roc_auc_score
from sklearn.preprocessing import OneHotEncoder
from support.two_processes import results_of

HERE = Path(__file__).parent
NEED_LEGACY_KERAS = {"resnet", "tagger"}

in_one_or_two_processes = pytest.mark.parametrize("where", ["process", "processes"])
in_process_or_on_ray = pytest.mark.parametrize(
    "where", ["process", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])]
)
Run = Callable[..., "Result"]


class Result:
    """The result of a program's `main`.

    Attributes:
        metrics: Metrics of the last evaluation.
        predicted: Predictions of all rows, by name.
        labels: Expected predictions.
        export_dir: Directory of the exported model.
        request: Inputs of the exported model for the same rows, by name.
    """

    def __init__(self, returned: dict[str, Any]) -> None:
        rows = [row if isinstance(row, dict) else {"output": row} for row in returned.pop("rows")]
        self.predicted = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        self.metrics: dict[str, Any] = returned["metrics"]
        self.labels: Any = returned["labels"]
        self.export_dir: str = returned["export_dir"]
        self.request: dict[str, Any] = returned["request"]


@pytest.fixture
def run(request: pytest.FixtureRequest, where: str, tmp_path: Path) -> Run:
    """Return a function that runs a program and checks what holds for all of them."""

    def run_and_check(name: str, steps: int, signature: str = "serving_default") -> Result:
        program, work_dir = str(HERE / f"{name}.py"), str(tmp_path)
        if where == "ray":
            address = request.getfixturevalue("cluster").get_runtime_context().gcs_address
            run_apart(program, work_dir, "2", RAY_ADDRESS=address)
        elif name in NEED_LEGACY_KERAS:
            run_apart(program, work_dir, "0", TF_USE_LEGACY_KERAS="1")
        elif where == "processes":
            results_of([(run_program.run_with_two_processes, program, work_dir)])
        else:
            results_of([(run_program.run, program, work_dir, "0")])
        result = Result(pickle.loads((tmp_path / "result.pickle").read_bytes()))
        assert result.metrics["global_step"] == steps
        assert_served_as_predicted(result, signature)
        return result

    return run_and_check


def run_apart(*arguments: str, **environment: str) -> None:
    """Run a program in a process that imports TensorFlow itself."""
    command = [sys.executable, HERE / "run_program.py", *arguments]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-6000:]


def served(export_dir: str | Path, request: dict[str, Any], signature: str) -> dict[str, np.ndarray]:
    """Return the outputs of an exported model."""
    model = tf.saved_model.load(str(export_dir))
    answers = model.signatures[signature](**{name: tf.constant(values) for name, values in request.items()})
    return {name: answer.numpy() for name, answer in answers.items()}


def assert_served_as_predicted(result: Result, signature: str) -> None:
    answers = served(result.export_dir, result.request, signature)
    assert answers.keys() == result.predicted.keys()
    for name, answer in answers.items():
        if answer.dtype.kind == "f":
            np.testing.assert_allclose(answer, result.predicted[name], rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(answer, result.predicted[name], err_msg=name)


@in_one_or_two_processes
def test_wide_and_deep(run: Run) -> None:
    result = run("wide_and_deep", steps=200, signature="predict")
    predicted = result.predicted["probabilities"][:, 1]
    assert result.metrics["auc"] == pytest.approx(roc_auc_score(result.labels, predicted), abs=1e-3)
    assert result.metrics["accuracy"] == pytest.approx(np.mean(result.predicted["class_ids"] == result.labels))
    people = examples(result, age=tf.float32, education=tf.string, occupation=tf.string, hours=tf.float32)
    words = one_hot(people["education"], people["occupation"], people["age"] // 10)
    additive = np.hstack([words, people["hours"][:, np.newaxis] / 10])
    assert result.metrics["auc"] > auc_of_logistic_regression(additive, result.labels) + 0.1


@in_one_or_two_processes
def test_text_cnn(run: Run) -> None:
    result = run("text_cnn", steps=200)
    classes = result.predicted["class"].astype(str)
    assert result.metrics["accuracy"] == pytest.approx(np.mean(classes == result.labels))
    bags = CountVectorizer().fit_transform(result.request["text"])
    positive = result.labels == "pos"
    bag_of_words = LogisticRegression(max_iter=1000).fit(bags, positive).score(bags, positive)
    assert result.metrics["accuracy"] > bag_of_words + 0.2
    vocabulary = Path(result.export_dir, "assets", "vocabulary.txt").read_text().split()
    assert {"<pad>", "not", "great"} <= set(vocabulary)
    assert Path(result.export_dir, "assets.extra", "words.txt").read_text().split() == vocabulary


@in_one_or_two_processes
def test_deepfm(run: Run) -> None:
    result = run("deepfm", steps=400)
    assert result.metrics["auc"] == pytest.approx(roc_auc_score(result.labels, result.predicted["prob"]), abs=1e-3)
    linear = auc_of_logistic_regression(one_hot(*result.request["feat_ids"].T), result.labels)
    assert result.metrics["auc"] > linear + 0.1


@in_process_or_on_ray
def test_esmm(run: Run) -> None:
    result = run("esmm", steps=400)
    shown = examples(result, user=tf.string, item=tf.string, age=tf.float32)
    additive = np.hstack([one_hot(shown["user"], shown["item"]), shown["age"][:, np.newaxis]])
    for prediction, label, margin in (("ctr", "click", 0.1), ("ctcvr", "buy", 0.03)):
        auc = result.metrics[f"{prediction}_auc"]
        assert auc == pytest.approx(roc_auc_score(result.labels[label], result.predicted[prediction]), abs=1e-3)
        assert auc > auc_of_logistic_regression(additive, result.labels[label]) + margin
    both = result.predicted["ctr"] * result.predicted["cvr"]
    np.testing.assert_allclose(result.predicted["ctcvr"], both, rtol=1e-5)
    (best,) = Path(result.export_dir).parents[1].glob("best/*")
    of_best = served(best, result.request, "serving_default")["ctcvr"]
    assert roc_auc_score(result.labels["buy"], of_best) > result.metrics["ctcvr_auc"] - 1e-3
    bought_if_clicked = result.predicted["cvr"][result.labels["click"] == 1]
    assert result.metrics["cvr"] == pytest.approx(bought_if_clicked.mean(), abs=1e-4)


@in_one_or_two_processes
def test_vae(run: Run) -> None:
    result = run("vae", steps=600)
    images = result.labels
    shares = np.clip(images.mean(axis=0), 1e-6, 1 - 1e-6)
    of_single_pixels = np.mean(np.sum(images * np.log(shares) + (1 - images) * np.log(1 - shares), axis=1))
    assert result.metrics["elbo"] > of_single_pixels + 2
    assert result.metrics["elbo"] == pytest.approx(-result.metrics["rate"] - result.metrics["distortion"], rel=1e-4)
    assert result.metrics["rate"] > 1, "the code says nothing"
    error = np.abs(result.predicted["reconstruction"] - images).mean()
    assert error < 0.75 * np.abs(shares - images).mean()


@in_process_or_on_ray
def test_tagger(run: Run) -> None:
    result = run("tagger", steps=150)
    of_word: dict[bytes, Counter[bytes]] = defaultdict(Counter)
    hits = tokens = 0
    for words, tags, predicted in zip(result.request["words"], result.labels, result.predicted["tags"], strict=True):
        for word, tag, guess in zip(words, tags, predicted, strict=False):
            of_word[word][tag] += 1
            hits, tokens = hits + (tag == guess), tokens + 1
    assert result.metrics["acc"] == pytest.approx(hits / tokens)
    most_frequent = sum(tags.most_common(1)[0][1] for tags in of_word.values()) / tokens
    assert result.metrics["acc"] > most_frequent + 0.08
    assert result.metrics["f1"] > 0.95


@in_one_or_two_processes
def test_triplet_loss(run: Run) -> None:
    result = run("triplet_loss", steps=200)

    def share_with_neighbour_of_the_same_digit(points: np.ndarray) -> float:
        distances = pairwise_distances(points)
        np.fill_diagonal(distances, np.inf)
        return float(np.mean(result.labels[distances.argmin(axis=1)] == result.labels))

    learned = share_with_neighbour_of_the_same_digit(result.predicted["embeddings"])
    components = PCA(n_components=result.predicted["embeddings"].shape[1], random_state=0)
    assert learned > share_with_neighbour_of_the_same_digit(components.fit_transform(result.request["input"])) + 0.05
    assert 0 < result.metrics["fraction_positive_triplets"] < 0.1


@in_one_or_two_processes
def test_gan(run: Run) -> None:
    result = run("gan", steps=400)
    real, generated = result.labels, result.predicted["output"]
    gaussian = np.random.default_rng(0).multivariate_normal(real.mean(axis=0), np.cov(real.T), size=len(real))

    def energy_distance(points: np.ndarray) -> float:
        between, within = pairwise_distances(points, real), (pairwise_distances(points), pairwise_distances(real))
        return float(2 * between.mean() - within[0].mean() - within[1].mean())

    assert energy_distance(generated) < 0.75 * energy_distance(gaussian)
    radii = np.linalg.norm(generated, axis=1)
    assert result.metrics["radius"] == pytest.approx(radii.mean(), rel=1e-4)


@in_one_or_two_processes
def test_matrix_factorization(run: Run) -> None:
    result = run("matrix_factorization", steps=420)

    def rmse(ratings: np.ndarray) -> float:
        return float(np.sqrt(np.mean((ratings - result.labels) ** 2)))

    assert result.metrics["rmse"] == pytest.approx(rmse(result.predicted["rating"]), rel=1e-4)
    tables = one_hot(result.request["user"], result.request["movie"])
    of_user_and_movie = Ridge(1.0).fit(tables, result.labels).predict(tables)
    assert result.metrics["rmse"] < 0.6 * rmse(of_user_and_movie)


@in_process_or_on_ray
def test_resnet(run: Run) -> None:
    result = run("resnet", steps=240)
    assert result.metrics["accuracy"] == pytest.approx(np.mean(result.predicted["classes"] == result.labels))
    images = result.request["image"].reshape(len(result.labels), -1)
    means = np.stack([images[result.labels == digit].mean(axis=0) for digit in range(10)])
    nearest_mean = np.mean(pairwise_distances(images, means).argmin(axis=1) == result.labels)
    assert result.metrics["accuracy"] > nearest_mean + 0.02
    assert result.metrics["accuracy_top_2"] >= result.metrics["accuracy"]


def examples(result: Result, **dtypes: tf.DType) -> dict[str, np.ndarray]:
    """Parse the serialized tf.Examples of the request into scalars."""
    spec = {name: tf.io.FixedLenFeature([], dtype) for name, dtype in dtypes.items()}
    return {name: values.numpy() for name, values in tf.io.parse_example(result.request["examples"], spec).items()}


def one_hot(*columns: np.ndarray) -> np.ndarray:
    return np.hstack([OneHotEncoder(sparse_output=False).fit_transform(values[:, np.newaxis]) for values in columns])


def auc_of_logistic_regression(inputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the AUC of a logistic regression fitted to the same labels."""
    labels = np.ravel(labels)
    fitted = LogisticRegression(max_iter=1000).fit(inputs, labels)
    return float(roc_auc_score(labels, fitted.decision_function(inputs)))
