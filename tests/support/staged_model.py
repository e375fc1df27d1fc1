"""A model that looks words up in a vocabulary, both of them files on a store."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ray_estimator import EstimatorSpec, ModeKeys, ServingInputReceiver, stage

v1 = tf.compat.v1


def input_fn(params: Any, mode: str) -> tf.data.Dataset:
    words = tf.data.TextLineDataset(stage(params["words"]))
    if mode == ModeKeys.TRAIN:
        words = words.repeat()
    return words.map(lambda word: ({"word": word}, tf.cast(tf.strings.length(word), tf.float32))).batch(2)


def model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    vocabulary = stage(params["vocabulary"])
    lookup = tf.lookup.TextFileInitializer(
        vocabulary, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    ids = tf.lookup.StaticHashTable(lookup, -1).lookup(features["word"])
    weights = v1.get_variable("weights", [3], initializer=v1.zeros_initializer())
    score = tf.gather(weights, ids)
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"id": ids, "score": score})
    loss = tf.reduce_mean(tf.square(score - labels))
    train_op = v1.train.GradientDescentOptimizer(0.1).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def serving_input_receiver_fn() -> ServingInputReceiver:
    word = v1.placeholder(tf.string, [None], "word")
    return ServingInputReceiver({"word": word}, {"word": word})
