"""A table of words as a model, importable by workers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ray_estimator import EstimatorSpec, ModeKeys, RunConfig
from support.probes import note

v1 = tf.compat.v1


def words_model_fn(features: Any, labels: Any, mode: str, params: Any, config: RunConfig) -> EstimatorSpec:
    """A table of words, their sum as prediction; notes what it sees of its place."""
    if "folder" in params:
        note(params["folder"], f"{mode}-model", place_in(config))
    table = v1.get_variable("table", [params["words"], 2], initializer=v1.ones_initializer())
    scale = v1.get_variable("scale", [], initializer=v1.constant_initializer(params["scale"]))
    rows = tf.reduce_sum(tf.gather(table, features["word"]), axis=1) * scale
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions=rows)
    loss = tf.reduce_mean(rows)
    optimizer = v1.train.MomentumOptimizer(params["learning_rate"], 0.9)
    metrics = {"sum": v1.metrics.mean(rows)}
    train_op = None
    if mode == ModeKeys.TRAIN:
        train_op = optimizer.minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op, eval_metric_ops=metrics)


def place_in(config: RunConfig) -> dict[str, Any]:
    names = "model_dir is_chief task_id task_type num_worker_replicas num_ps_replicas global_id_in_cluster"
    more = "master evaluation_master service tf_random_seed"
    seen = {name: getattr(config, name) for name in (names + " " + more).split()}
    return {**seen, "cluster": config.cluster_spec.as_dict(), "soft": config.session_config.allow_soft_placement}


def two_words_input_fn() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors(({"word": [0, 1]}, [0.0]))


def trained_words(in_process: Any, model_dir: Any) -> Any:
    """An Estimator of four words that was trained for three steps in this process."""

    def input_fn() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors(({"word": [0, 1, 1, 2, 2, 2, 3, 3]}, [0.0])).repeat(3)

    params = {"words": 4, "scale": 2.0, "learning_rate": 0.1}
    return in_process(words_model_fn, params=params, model_dir=model_dir).train(input_fn)
