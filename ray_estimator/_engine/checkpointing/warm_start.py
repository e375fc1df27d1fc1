"""Makes the variables of a model without a checkpoint start from those of another."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._checkpoints.store import Checkpoint, CheckpointStore
from ray_estimator._engine.checkpointing.local_copies import fetched
from ray_estimator._engine.distribution.strategy import Distribution
from ray_estimator._engine.graph.traversal import ancestors
from ray_estimator._engine.tf_private import graphs
from ray_estimator._jobs.jobs import ModelJob
from ray_estimator._storage.storage import Storage
from ray_estimator.warm_start import WarmStartSettings

logger = logging.getLogger(__name__)

_KEYS = (v1.GraphKeys.GLOBAL_VARIABLES, v1.GraphKeys.TRAINABLE_VARIABLES)


@contextlib.contextmanager
def starting_point(job: Any) -> Iterator[str | None]:
    """A local prefix to restore the job's checkpoint from; None if it has none, and then its warm start acts.

    Enter it when the graph has all its variables, and leave it when the session has initialised them.
    """
    store = CheckpointStore(job.model_dir, Storage(job.config.storage_options))
    with fetched(store, job.checkpoint) as prefix, warm_started(job):
        yield prefix


@contextlib.contextmanager
def warm_started(job: ModelJob, distribution: Distribution | None = None, *, is_chief: bool = True) -> Iterator[None]:
    """Within it, the variables of the default graph are initialised from the job's warm start, if it has one.

    Args:
        job: The job; the driver has resolved which checkpoint its settings name.
        distribution: Whose variables they are, in training.
        is_chief: Whether this process is the chief. Initial values of a group are the chief's, who sends them to the
            others: so are these.
    """
    if job.warm_start is None or not is_chief:
        yield
        return
    settings = job.warm_start.open()["warm_start_from"]
    logger.info("Warm-starting with WarmStartSettings: %s", settings)
    storage = Storage(job.config.storage_options)
    store = CheckpointStore(job.model_dir, storage)
    with (
        fetched(store, Checkpoint.at(settings.ckpt_to_initialize_from)) as prefix,
        tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder,
    ):
        vocabularies = _with_local_files(settings.var_name_to_vocab_info, storage, folder)
        settings = settings._replace(ckpt_to_initialize_from=prefix, var_name_to_vocab_info=vocabularies)
        if distribution is None or distribution.num_replicas == 1:
            v1.train.warm_start(*settings)
        else:
            _warm_start_group(settings, distribution)
        yield


def _warm_start_group(settings: WarmStartSettings, distribution: Distribution) -> None:
    """The same for a group, on its chief."""
    with _local_variables(distribution):
        variables = v1.global_variables()
        own_initializers = [variable.initializer for variable in variables]
        v1.train.warm_start(*settings)
        for variable, initializer in zip(variables, own_initializers, strict=True):
            _broadcast_instead(variable, initializer)


@contextlib.contextmanager
def _local_variables(distribution: Distribution) -> Iterator[None]:
    """Within it, the graph's collections hold this process's copies: TensorFlow remaps the rows of no others."""
    kept = {key: list(v1.get_collection_ref(key)) for key in _KEYS}
    for key in _KEYS:
        v1.get_collection_ref(key)[:] = [distribution.localize(variable) for variable in kept[key]]
    try:
        yield
    finally:
        for key in _KEYS:
            v1.get_collection_ref(key)[:] = kept[key]


def _broadcast_instead(variable: tf.Variable, initializer: tf.Operation) -> None:
    """Puts the value that a warm start initialises with into the broadcast of the variable's own initializer."""
    warm = getattr(variable.initializer, "op", variable.initializer)
    if warm is initializer:
        return
    operations = ancestors([initializer])
    sent = next(op.inputs[0] for op in operations if op.type.startswith("CollectiveBcastSend"))
    for op in operations:
        for number, tensor in enumerate(op.inputs):
            if tensor is sent:
                graphs.replace_input(op, number, warm.inputs[1])
    graphs.set_initializer(variable, initializer)


def _with_local_files(vocabularies: Mapping[str, Any], storage: Storage, folder: str) -> dict[str, Any]:
    """The vocabularies, with files of a remote store fetched: TensorFlow opens no URL."""

    def local(url: str) -> str:
        path = storage.local_path(url)
        if path is None:
            path = os.path.join(folder, str(len(os.listdir(folder))))
            storage.get_file(url, path)
        return path

    return {
        name: info._replace(new_vocab=local(info.new_vocab), old_vocab=local(info.old_vocab))
        for name, info in vocabularies.items()
    }
