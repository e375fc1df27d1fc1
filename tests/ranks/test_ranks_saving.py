"""Saving on two ranks: listeners, the saver of a Scaffold, a variable that a save reads from every rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1
from support.models import endless_input_fn, linear_model_fn
from support.probes import note, notes

from ray_estimator import EstimatorSpec, ModeKeys
from ray_estimator.estimator import job_builder_of


class NoteSaves(v1.train.CheckpointSaverListener):
    """Notes each call, on the rank on which it happens."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def before_save(self, session: Any, global_step_value: Any) -> None:
        note(self._folder, "saves", ["before", int(global_step_value)])

    def after_save(self, session: Any, global_step_value: Any) -> None:
        note(self._folder, "saves", ["after", int(global_step_value)])


def averaging_model_fn(features: Any, labels: Any, mode: str, params: Any) -> EstimatorSpec:
    """A linear model with an average that is reduced over the ranks when it is read, and a saver of its own."""
    spec = linear_model_fn(features, labels, mode, params)
    average = tf.Variable(
        0.0,
        name="average",
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.MEAN,
    )
    if mode != ModeKeys.TRAIN:
        return spec
    rank = tf.distribute.get_replica_context().replica_id_in_sync_group
    train_op = tf.group(spec.train_op, average.assign(tf.cast(rank, tf.float32) + 1.0))
    scaffold = v1.train.Scaffold(saver=v1.train.Saver(sharded=True, max_to_keep=2, defer_build=True))
    return spec._replace(train_op=train_op, scaffold=scaffold)


def test_a4_11_every_rank_takes_part_in_a_save_and_the_chief_publishes_it(
    on_ranks: Callable[..., Any], tmp_path: Any
) -> None:
    estimator = on_ranks(averaging_model_fn, params={}, save_checkpoints_steps=2)

    estimator.train(endless_input_fn, steps=5, saving_listeners=[partial(NoteSaves, str(tmp_path))])

    each = [[when, step] for step in (0, 2, 4, 5) for when in ("before", "after")]
    assert notes(tmp_path, "saves") == {0: each}
    assert [checkpoint.step for checkpoint in job_builder_of(estimator).store.published()] == [4, 5]
    # The mean of 1 on rank 0 and 2 on rank 1.
    assert estimator.get_variable_value("average") == 1.5
