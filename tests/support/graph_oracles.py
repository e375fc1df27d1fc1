"""Expected results of training each part of `graph_parts`, computed in NumPy, for any number of workers.

Each oracle returns the variables after one pass over the rows, and the predictions of the trained model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from support.graph_parts import GLOBAL_BATCH, IDS, LISTS, NUM_ROWS, OTHER, PHRASE, RATE, STEPS, WORD, WORDS, X

v1 = tf.compat.v1

Values = dict[str, Any]
Oracle = Callable[[], tuple[Values, Values]]

NUMBER = np.array([[*WORDS, OTHER].index(word) for word in WORD])
BATCHES = X.reshape(STEPS, GLOBAL_BATCH, -1)


def one_hot(numbers: Any, depth: int) -> np.ndarray:
    return np.eye(depth, dtype=np.float32)[numbers]


def counts(lists: list[Any], depth: int) -> np.ndarray:
    """How often each number occurs in each list."""
    return np.stack([np.bincount(np.asarray(each, int), minlength=depth) for each in lists]).astype(np.float32)


def descended(per_row: np.ndarray, start: float = 0.0) -> np.ndarray:
    """A weight after gradient descent over all batches; `per_row` is the factor of the weight in each row."""
    return start - RATE * per_row.sum(axis=0) / GLOBAL_BATCH


def linear(per_row: np.ndarray) -> tuple[Values, Values]:
    weight = descended(per_row)
    return {"weight": weight}, {"score": per_row @ weight}


def lookup() -> tuple[Values, Values]:
    variables, predictions = linear(one_hot(NUMBER, 4))
    return variables, {**predictions, "word": WORD.astype("S")}


def vocabulary() -> tuple[Values, Values]:
    return linear(one_hot(NUMBER, 4))


def sparse() -> tuple[Values, Values]:
    weight = descended(X)
    return {"weight": weight[:, np.newaxis]}, {"score": X @ weight}


def ragged() -> tuple[Values, Values]:
    return linear(counts(LISTS, 4))


def strings() -> tuple[Values, Values]:
    split = [phrase.split() for phrase in PHRASE]
    variables, predictions = linear(counts([[WORDS.index(word) for word in words] for words in split], 3))
    return variables, {**predictions, "joined": np.array(["-".join(words) for words in split]).astype("S")}


def columns() -> tuple[Values, Values]:
    number, left, right = X[:, :1], one_hot(IDS[:, 0], 4), one_hot(IDS[:, 1], 4)
    bucket_number = np.digitize(X[:, 0], [-1.0, 1.0])
    hashed, crossed = _by_hash(bucket_number)
    by_file, by_list, bucket = one_hot(NUMBER, 4), one_hot(NUMBER, 4)[:, :3], one_hot(bucket_number, 3)
    weighted = left * (np.abs(number) + 1)
    linear_inputs = {
        "number": number,
        "number_bucketized": bucket,
        "word": by_file,
        "name": by_list,
        "number_bucketized_X_right": crossed,
        "left_weighted_by_size": weighted,
    }
    variables = {f"linear_model/{name}/weights": descended(each)[:, np.newaxis] for name, each in linear_inputs.items()}
    bias = descended(np.ones([NUM_ROWS, 1], np.float32))
    variables["linear_model/bias_weights"] = bias
    named = descended(by_list, 1.0)
    variables["input_layer/name_embedding/embedding_weights"] = np.stack([named, named], axis=1)
    shared = descended(left + right, 1.0)
    variables["input_layer/left_right_shared_embedding/embedding_weights"] = shared[:, np.newaxis]
    line = sum(each @ descended(each) for each in linear_inputs.values()) + bias
    embedded = X[:, 0] + bucket.sum(axis=1) + 2 * by_list @ named + (left + right) @ shared
    return variables, {
        "score": line + embedded,
        "linear": line,
        "dense": np.concatenate([by_list, crossed, hashed], axis=1),  # in the order of column names
    }


def _by_hash(bucket_number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words in 5 hash buckets, and crosses of bucket and right id in 7, computed by TensorFlow."""
    with tf.Graph().as_default(), v1.Session() as session:
        words = tf.strings.to_hash_bucket_fast(WORD, 5)
        rows = np.stack([np.arange(NUM_ROWS), np.zeros(NUM_ROWS, int)], axis=1)
        sides = [
            tf.SparseTensor(rows, np.asarray(side, np.int64), [NUM_ROWS, 1]) for side in (bucket_number, IDS[:, 1])
        ]
        crosses = tf.sparse.cross_hashed(sides, num_buckets=7)
        of_words, of_crosses = session.run([words, crosses.values])
    return one_hot(of_words, 5), one_hot(of_crosses, 7)


def update_ops() -> tuple[Values, Values]:
    weight, moving = descended(X), np.zeros(3)
    for batch in BATCHES:
        moving = (moving + batch.mean(axis=0)) / 2
    return {"weight": weight, "moving": moving}, {"score": (X - moving) @ weight}


def regularized() -> tuple[Values, Values]:
    weight = np.ones(3)
    for batch in BATCHES:
        # The score is far below the labels, so the absolute difference decreases as the score increases.
        weight = weight - RATE * (-batch.mean(axis=0) + 2.0 + weight)
    return {"weight": weight}, {"score": X @ weight}


def grouped() -> tuple[Values, Values]:
    first = descended(X)
    variables = {"first": first, "second": 10 * first, "counted": 2 * STEPS}
    return variables, {"first": X @ first, "second": X @ (10 * first)}


def gan() -> tuple[Values, Values]:
    weight, slope = np.ones(3), 1.0
    for batch in BATCHES:
        mean = batch.mean(axis=0)
        slope, weight = slope - RATE * (mean @ weight - mean[0]), weight + RATE * mean * slope
    made = X @ weight
    return {"generator/weight": weight, "discriminator/slope": slope}, {"made": made, "judged": made * slope}


def clipped() -> tuple[Values, Values]:
    weight = np.zeros(3)
    for step, batch in enumerate(BATCHES):
        gradient = 10 * batch.mean(axis=0)
        weight = weight - RATE * 0.5**step * gradient / max(1.0, np.linalg.norm(gradient))
    return {"weight": weight}, {"score": 10 * X @ weight}


def averaged() -> tuple[Values, Values]:
    weight = average = np.zeros(3)
    for batch in BATCHES:
        weight = weight - RATE * batch.mean(axis=0)
        average = (average + weight) / 2
    variables = {"weight": weight, "averaged/weight/ExponentialMovingAverage": average}
    return variables, {"score": X @ weight, "smoothed": X @ average}


def by_hand() -> tuple[Values, Values]:
    weight = momentum = np.zeros(3)
    for batch in BATCHES:
        momentum = momentum / 2 + batch.mean(axis=0)
        weight = weight - RATE * momentum
    return {"weight": weight, "momentum": momentum}, {"score": X @ weight}


def sparse_adam() -> tuple[Values, Values]:
    table, first, second = np.zeros(4), np.zeros(4), np.zeros(4)
    for step in range(STEPS):
        gradient = counts(list(IDS), 4)[step * GLOBAL_BATCH :][:GLOBAL_BATCH].mean(axis=0)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        rate = RATE * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        table = table - rate * first / (np.sqrt(second) + 1e-8)
    both = {"table": table, "sparse_adam/table/Adam": first, "sparse_adam/table/Adam_1": second}
    variables = {name: np.stack([value, value], axis=1) for name, value in both.items()}
    variables |= {"beta1_power": 0.9 ** (STEPS + 1), "beta2_power": 0.999 ** (STEPS + 1)}
    return variables, {"score": 2 * counts(list(IDS), 4) @ table}


def custom_gradient() -> tuple[Values, Values]:
    weight = 7 * descended(X)
    return {"weight": weight}, {"score": X @ weight}


def control_flow() -> tuple[Values, Values]:
    signs = np.repeat([1.0, -1.0, 1.0], GLOBAL_BATCH)[:, np.newaxis]
    weight = descended(4 * signs * X)
    return {"weight": weight}, {"score": 4 * X @ weight}


def python_function() -> tuple[Values, Values]:
    return linear(4 * X)


def dtypes() -> tuple[Values, Values]:
    weight = descended(X)
    names = ("float16", "float32", "float64")
    variables = {**dict.fromkeys(names, weight), "seen": NUM_ROWS}
    return variables, {**dict.fromkeys(names, X @ weight), "seen": np.full(NUM_ROWS, NUM_ROWS)}


def scopes() -> tuple[Values, Values]:
    # The score is 3 x (2 shared + 2 auto + old + new).
    once = descended(3 * X[:, 0])
    variables = {"shared/weight": 2 * once, "auto/weight": 2 * once, "old": once, "new": once, "fixed": 1.0}
    return variables, {"score": 3 * X[:, 0] * 10 * once}


def partitioned() -> tuple[Values, Values]:
    per_row = counts(list(IDS), 4) + X[:, :1]
    weight = descended(per_row)
    return {"split/weight": weight}, {"score": per_row @ weight}


ORACLES: dict[str, Oracle] = {
    oracle.__name__: oracle
    for oracle in (
        *(lookup, vocabulary, sparse, ragged, strings, columns),
        *(update_ops, regularized, grouped, gan, clipped, averaged, by_hand, sparse_adam),
        *(custom_gradient, control_flow, python_function, dtypes, scopes, partitioned),
    )
}
