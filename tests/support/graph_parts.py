"""Parts of models, each of which uses one feature of TensorFlow graphs; importable by workers.

A part's loss is linear in its variables where possible, so that the trained variables are easy to compute: gradient
descent decreases a weight by 0.1 times the mean of its factor. `model_fn` builds the parts in `params["parts"]`, each
in its own variable scope, and adds their losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from ray_estimator import EstimatorSpec, ModeKeys

v1 = tf.compat.v1

RATE = 0.1
NUM_ROWS = 24
GLOBAL_BATCH = 8
WORDS = ("red", "green", "blue")
OTHER = "pink"

_rng = np.random.default_rng(5)
X = _rng.integers(-3, 4, size=(NUM_ROWS, 3)).astype(np.float32)
WORD = _rng.choice([*WORDS, OTHER], size=NUM_ROWS)
IDS = _rng.integers(0, 4, size=(NUM_ROWS, 2)).astype(np.int64)
LENGTHS = _rng.integers(0, 4, size=NUM_ROWS)
LISTS = [_rng.integers(0, 4, size=length).astype(np.int64) for length in LENGTHS]
PHRASE = np.array([" ".join(_rng.choice(WORDS, size=length)) for length in LENGTHS])
Y = _rng.integers(-3, 4, size=NUM_ROWS).astype(np.float32)


def _rows() -> tf.data.Dataset:
    features = {
        "x": X,
        "word": WORD.astype("S"),
        "ids": IDS,
        "sparse": tf.sparse.from_dense(X),
        "ragged": tf.ragged.constant([row.tolist() for row in LISTS], tf.int64),
        "phrase": PHRASE.astype("S"),
    }
    return tf.data.Dataset.from_tensor_slices((features, Y))


def input_fn(mode: str, input_context: Any = None) -> tf.data.Dataset:
    """One pass over the rows in order, in global batches of 8 that are split over the workers."""
    workers = input_context.num_input_pipelines if input_context is not None else 1
    batches = _rows().batch(GLOBAL_BATCH // workers, drop_remainder=mode == ModeKeys.TRAIN)
    return batches if workers == 1 else batches.shard(workers, input_context.input_pipeline_id)


STEPS = NUM_ROWS // GLOBAL_BATCH


@dataclass
class Part:
    """A part: loss, predictions by name, and a training op if it does not use plain gradient descent."""

    loss: tf.Tensor
    predictions: dict[str, tf.Tensor]
    train_op: Any = None
    metrics: dict[str, Any] = field(default_factory=dict)
    counts_step: bool = False


def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """The parts in `params["parts"]`; predictions are named part/name."""
    parts = {}
    for name in params["parts"]:
        with v1.variable_scope(name):
            parts[name] = PARTS[name](features, labels, mode, params)
    predictions = {f"{name}/{key}": value for name, part in parts.items() for key, value in part.predictions.items()}
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions=predictions)
    loss = tf.add_n([part.loss for part in parts.values()])
    if mode == ModeKeys.EVAL:
        metrics = {f"{name}/loss": v1.metrics.mean(part.loss) for name, part in parts.items()}
        for name, part in parts.items():
            metrics |= {f"{name}/{key}": metric for key, metric in part.metrics.items()}
        return EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)
    train_ops = [_descend(part.loss, name) if part.train_op is None else part.train_op for name, part in parts.items()]
    if not any(part.counts_step for part in parts.values()):
        with tf.control_dependencies(train_ops):
            train_ops = [v1.assign_add(v1.train.get_global_step(), 1)]
    return EstimatorSpec(mode, loss=loss, train_op=tf.group(*train_ops))


def _descend(loss: tf.Tensor, scope: str) -> tf.Operation:
    return v1.train.GradientDescentOptimizer(RATE).minimize(loss, var_list=v1.trainable_variables(f"{scope}/"))


def _zeros(name: str, *shape: int, **options: Any) -> tf.Variable:
    return v1.get_variable(name, shape, initializer=v1.zeros_initializer(), **options)


def _ones(name: str, *shape: int, **options: Any) -> tf.Variable:
    return v1.get_variable(name, shape, initializer=v1.ones_initializer(), **options)


# Words, lists and columns


def lookup(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """A weight for each word, found in a lookup table; a second table maps the numbers back to words."""
    words = tf.constant([*WORDS, OTHER])
    numbers = tf.range(len(WORDS) + 1, dtype=tf.int64)
    to_number = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(words[:-1], numbers[:-1]), len(WORDS))
    to_word = v1.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(numbers, words), "unknown")
    number = to_number.lookup(features["word"])
    score = tf.gather(_zeros("weight", len(WORDS) + 1), number)
    return Part(tf.reduce_mean(score), {"score": score, "word": to_word.lookup(number)})


def vocabulary(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """A weight for each line of the file `params["vocabulary"]`, and one bucket for other words."""
    lines = tf.lookup.TextFileInitializer(
        params["vocabulary"],
        *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
        *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
    )
    number = tf.lookup.StaticVocabularyTable(lines, num_oov_buckets=1).lookup(features["word"])
    score = tf.gather(_zeros("weight", len(WORDS) + 1), number)
    return Part(tf.reduce_mean(score), {"score": score})


def sparse(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """A sparse matrix times a weight."""
    score = tf.sparse.sparse_dense_matmul(features["sparse"], _zeros("weight", 3, 1))[:, 0]
    return Part(tf.reduce_mean(score), {"score": score})


def ragged(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """The sum of the weights of a list of ids."""
    score = tf.reduce_sum(tf.gather(_zeros("weight", 4), features["ragged"]), axis=1)
    return Part(tf.reduce_mean(score), {"score": score})


def strings(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """A weight for each word of a phrase."""
    words = tf.strings.split(features["phrase"])
    same = tf.cast(tf.equal(words.values[:, tf.newaxis], tf.constant(WORDS)), tf.float32)
    weights = tf.linalg.matvec(same, _zeros("weight", len(WORDS)))
    score = tf.reduce_sum(words.with_values(weights), axis=1)
    joined = tf.strings.reduce_join(words, axis=1, separator="-")
    return Part(tf.reduce_mean(score), {"score": score, "joined": joined})


def columns(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """Feature columns of every kind, through `linear_model` and `input_layer`; weights start at 0, embeddings at 1."""
    fc = tf.feature_column
    number = fc.numeric_column("number")
    bucket = fc.bucketized_column(number, [-1.0, 1.0])
    by_file = fc.categorical_column_with_vocabulary_file("word", params["vocabulary"], num_oov_buckets=1)
    by_list = fc.categorical_column_with_vocabulary_list("name", WORDS)
    left, right = (fc.categorical_column_with_identity(side, 4) for side in ("left", "right"))
    weighted = fc.weighted_categorical_column(left, "size")
    crossed = fc.crossed_column([bucket, right], 7)
    inputs = {
        "number": features["x"][:, :1],
        "size": tf.abs(features["x"][:, :1]) + 1.0,
        "word": features["word"],
        "name": features["word"],
        "left": features["ids"][:, 0],
        "right": features["ids"][:, 1],
    }
    linear = v1.feature_column.linear_model(inputs, [number, bucket, by_file, by_list, crossed, weighted])
    ones = v1.ones_initializer()
    embeddings = [
        fc.embedding_column(by_list, dimension=2, initializer=ones),
        *v1.feature_column.shared_embedding_columns([left, right], dimension=1, initializer=ones),
    ]
    hashed = fc.categorical_column_with_hash_bucket("word", 5)
    with v1.variable_scope("shown"):
        dense = v1.feature_column.input_layer(
            inputs, [fc.indicator_column(each) for each in (hashed, crossed, by_list)]
        )
    embedded = v1.feature_column.input_layer(inputs, [number, bucket, *embeddings])
    score = linear[:, 0] + tf.reduce_sum(embedded, axis=1)
    return Part(tf.reduce_mean(score), {"score": score, "dense": dense, "linear": linear[:, 0]})


# Losses and training ops


def update_ops(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """A moving mean in UPDATE_OPS, as in batch normalization; EVAL and PREDICT subtract it."""
    weight = _zeros("weight", 3)
    moving = _zeros("moving", 3, trainable=False)
    centred = features["x"] - moving
    if mode == ModeKeys.TRAIN:
        mean = tf.reduce_mean(features["x"], axis=0)
        v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, v1.assign_sub(moving, 0.5 * (moving - mean)))
        centred = features["x"]
    score = tf.linalg.matvec(centred, weight)
    part = Part(tf.reduce_mean(score), {"score": score})
    if mode == ModeKeys.TRAIN:
        with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
            part.train_op = _descend(part.loss, "update_ops")
    return part


def regularized(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """Losses in collections: of the data, of a regularizer, and one added explicitly."""
    weight = _ones("weight", 3, regularizer=lambda value: 0.5 * tf.reduce_sum(tf.square(value)))
    score = tf.linalg.matvec(features["x"], weight)
    v1.losses.add_loss(tf.reduce_sum(weight) * 2.0)
    if labels is None:
        return Part(tf.constant(0.0), {"score": score})
    v1.losses.absolute_difference(labels, score - 1000.0)
    return Part(v1.losses.get_total_loss(), {"score": score})


def grouped(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """Two losses with separate optimizers and variables, and an assignment, in one group."""
    first, second = _zeros("first", 3), _zeros("second", 3)
    counted = v1.get_variable("counted", [], tf.int64, v1.zeros_initializer(), trainable=False)
    scores = [tf.linalg.matvec(features["x"], weight) for weight in (first, second)]
    losses = [tf.reduce_mean(score) for score in scores]
    train_op = None
    if mode == ModeKeys.TRAIN:
        train_op = tf.group(
            v1.train.GradientDescentOptimizer(RATE).minimize(losses[0], var_list=[first]),
            v1.train.GradientDescentOptimizer(10 * RATE).minimize(losses[1], var_list=[second]),
            v1.assign_add(counted, 2),
        )
    return Part(losses[0] + losses[1], {"first": scores[0], "second": scores[1]}, train_op)


def gan(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """A GAN: each optimizer updates the variables of its scope with its own loss, one after the other.

    `params["gan_steps"]` is the number of optimizers that increment the global step.
    """
    with v1.variable_scope("generator"):
        made = tf.linalg.matvec(features["x"], _ones("weight", 3))
    with v1.variable_scope("discriminator"):
        slope = 1.0 * _ones("slope")
    real, fake = tf.reduce_mean(features["x"][:, 0]) * slope, tf.reduce_mean(made) * slope
    loss_of_discriminator, loss_of_generator = fake - real, -fake
    train_op = None
    if mode == ModeKeys.TRAIN:
        scope = v1.get_variable_scope().name
        step = v1.train.get_global_step()
        with tf.control_dependencies([slope, made]):
            first = v1.train.GradientDescentOptimizer(RATE).minimize(
                loss_of_discriminator,
                step if params["gan_steps"] == 2 else None,
                var_list=v1.get_collection(v1.GraphKeys.TRAINABLE_VARIABLES, f"{scope}/discriminator"),
            )
        with tf.control_dependencies([first]):
            train_op = v1.train.GradientDescentOptimizer(RATE).minimize(
                loss_of_generator,
                step,
                var_list=v1.get_collection(v1.GraphKeys.TRAINABLE_VARIABLES, f"{scope}/generator"),
            )
    loss = loss_of_discriminator + loss_of_generator
    return Part(loss, {"made": made, "judged": made * slope}, train_op, counts_step=True)


def clipped(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """Gradients clipped to norm 1, and a learning rate that halves after each step."""
    weight = _zeros("weight", 3)
    score = 10.0 * tf.linalg.matvec(features["x"], weight)
    loss = tf.reduce_mean(score)
    train_op = None
    if mode == ModeKeys.TRAIN:
        rate = v1.train.exponential_decay(RATE, v1.train.get_global_step(), decay_steps=1, decay_rate=0.5)
        optimizer = v1.train.GradientDescentOptimizer(rate)
        gradients = optimizer.compute_gradients(loss, [weight])
        train_op = optimizer.apply_gradients([(tf.clip_by_norm(g, 1.0), variable) for g, variable in gradients])
    return Part(loss, {"score": score}, train_op)


def averaged(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """An ExponentialMovingAverage of the weight, updated after each step; predictions show both."""
    weight = _zeros("weight", 3)
    average = tf.train.ExponentialMovingAverage(0.5)
    score = tf.linalg.matvec(features["x"], weight)
    loss = tf.reduce_mean(score)
    if mode == ModeKeys.TRAIN:
        with tf.control_dependencies([_descend(loss, "averaged")]):
            return Part(loss, {}, average.apply([weight]))
    average.apply([weight])
    smoothed = tf.linalg.matvec(features["x"], average.average(weight))
    return Part(loss, {"score": score, "smoothed": smoothed})


def by_hand(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """Gradient descent with momentum, written with assignments instead of an optimizer."""
    weight, momentum = _zeros("weight", 3), _zeros("momentum", 3, trainable=False)
    score = tf.linalg.matvec(features["x"], weight)
    loss = tf.reduce_mean(score)
    if mode != ModeKeys.TRAIN:
        return Part(loss, {"score": score})
    (gradient,) = tf.gradients(loss, weight)
    next_momentum = 0.5 * momentum + gradient
    train_op = tf.group(v1.assign(momentum, next_momentum), weight.assign(weight - RATE * next_momentum))
    return Part(loss, {}, train_op)


def sparse_adam(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """An embedding under Adam, whose gradients are IndexedSlices."""
    score = tf.reduce_sum(tf.nn.embedding_lookup(_zeros("table", 4, 2), features["ids"]), axis=[1, 2])
    loss = tf.reduce_mean(score)
    train_op = v1.train.AdamOptimizer(RATE).minimize(loss) if mode == ModeKeys.TRAIN else None
    return Part(loss, {"score": score}, train_op)


# Operations


def custom_gradient(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """The identity with a gradient that is multiplied by seven."""

    @tf.custom_gradient
    def louder(value: tf.Tensor) -> Any:
        return tf.identity(value), lambda upstream: 7.0 * upstream

    score = tf.linalg.matvec(features["x"], louder(_zeros("weight", 3).read_value()))
    return Part(tf.reduce_mean(score), {"score": score})


def control_flow(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """Four times a product, in a loop; a branch negates it at odd global steps."""
    weight = _zeros("weight", 3)
    _, total = tf.while_loop(
        lambda turn, _: turn < 4,
        lambda turn, total: (turn + 1, total + tf.linalg.matvec(features["x"], weight)),
        [0, tf.zeros_like(features["x"][:, 0])],
    )
    odd = tf.equal(v1.train.get_global_step() % 2, 1)
    score = tf.cond(odd, lambda: -total, lambda: tf.identity(total)) if mode == ModeKeys.TRAIN else total
    return Part(tf.reduce_mean(score), {"score": score})


def python_function(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """Features transformed in Python by `numpy_function`, `py_func` and `py_function`."""
    doubled = tf.numpy_function(lambda x: 2 * x, [features["x"]], tf.float32)
    tripled = v1.py_func(lambda x: 3 * x, [features["x"]], tf.float32, stateful=False)
    negated = tf.py_function(lambda x: -x, [features["x"]], tf.float32)
    for made in (doubled, tripled, negated):
        made.set_shape(features["x"].shape)
    score = tf.linalg.matvec(doubled + tripled + negated, _zeros("weight", 3))
    return Part(tf.reduce_mean(score), {"score": score})


def dtypes(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """Weights of every float dtype, and an integer counter that is assigned."""
    scores = {}
    for dtype in (tf.float16, tf.float32, tf.float64):
        weight = _zeros(dtype.name, 3, dtype=dtype)
        scores[dtype.name] = tf.linalg.matvec(tf.cast(features["x"], dtype), weight)
    seen = _zeros("seen", dtype=tf.int32, trainable=False)
    loss = tf.add_n([tf.cast(tf.reduce_mean(score), tf.float32) for score in scores.values()])
    train_op = None
    if mode == ModeKeys.TRAIN:
        train_op = tf.group(_descend(loss, "dtypes"), v1.assign_add(seen, GLOBAL_BATCH))
    return Part(loss, {**scores, "seen": tf.fill(tf.shape(features["word"]), seen)}, train_op)


def scopes(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """Variables created in every way of TF1."""
    x = features["x"][:, 0]
    with v1.variable_scope("shared"):
        first = _zeros("weight")
    with v1.variable_scope("shared", reuse=True):
        again = _zeros("weight")
    with v1.variable_scope("auto", reuse=v1.AUTO_REUSE):
        one, other = _zeros("weight"), _zeros("weight")
    old = v1.Variable(0.0, name="old")
    new = tf.Variable(0.0, name="new")
    fixed = _ones("fixed", trainable=False)
    local = v1.get_local_variable("local", initializer=3.0)
    assert first is again
    assert one is other
    score = x * (first + again + one + other + old + new) * fixed * local
    return Part(tf.reduce_mean(score), {"score": score})


def partitioned(features: Any, labels: Any, mode: str, params: Any) -> Part:
    """A weight in two partitions, used as a whole and by rows."""
    with v1.variable_scope("split", partitioner=v1.fixed_size_partitioner(2)):
        weight = _zeros("weight", 4)
    whole = tf.convert_to_tensor(weight)
    looked_up = tf.reduce_sum(v1.nn.embedding_lookup(weight, features["ids"], partition_strategy="div"), axis=1)
    score = looked_up + features["x"][:, 0] * tf.reduce_sum(whole)
    return Part(tf.reduce_mean(score), {"score": score})


PARTS: dict[str, Callable[..., Part]] = {
    part.__name__: part
    for part in (
        *(lookup, vocabulary, sparse, ragged, strings, columns),
        *(update_ops, regularized, grouped, gan, clipped, averaged, by_hand, sparse_adam),
        *(custom_gradient, control_flow, python_function, dtypes, scopes, partitioned),
    )
}
