"""Initialize variables from another model's checkpoint, if there is no checkpoint to restore."""

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
from ray_estimator._jobs.jobs import ModelJob
from ray_estimator._storage.storage import Storage
from ray_estimator._tf_private import graphs
from ray_estimator.warm_start import WarmStartSettings

logger = logging.getLogger(__name__)

_VARIABLE_COLLECTIONS = (v1.GraphKeys.GLOBAL_VARIABLES, v1.GraphKeys.TRAINABLE_VARIABLES)


@contextlib.contextmanager
def checkpoint_or_warm_start(job: Any) -> Iterator[str | None]:
    """Provide a local prefix to restore the job's checkpoint from; None if there is none, and its warm start applies.

    Enter the context when the graph has all its variables, and leave it when the session has initialized them.
    """
    store = CheckpointStore(job.model_dir, Storage(job.config.storage_options))
    with fetched(store, job.checkpoint) as prefix, warm_started(job):
        yield prefix


@contextlib.contextmanager
def warm_started(job: ModelJob, distribution: Distribution | None = None, *, is_chief: bool = True) -> Iterator[None]:
    """Within the context, make the default graph initialize variables from the job's warm start, if it has one.

    Args:
        job: The job; its settings name a checkpoint, which the driver has resolved.
        distribution: The distribution of the variables, in training.
        is_chief: Whether this process is the chief. The chief broadcasts the initial values of a group, and these too.
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
    """Warm-start a group, on its chief."""
    with _local_variables(distribution):
        variables = v1.global_variables()
        initializers = [variable.initializer for variable in variables]
        v1.train.warm_start(*settings)
        for variable, initializer in zip(variables, initializers, strict=True):
            _broadcast_warm_value(variable, initializer)


@contextlib.contextmanager
def _local_variables(distribution: Distribution) -> Iterator[None]:
    """Within the context, put this process's copies into the collections: TensorFlow remaps rows only of those."""
    original = {key: list(v1.get_collection_ref(key)) for key in _VARIABLE_COLLECTIONS}
    for key in _VARIABLE_COLLECTIONS:
        v1.get_collection_ref(key)[:] = [distribution.localize(variable) for variable in original[key]]
    try:
        yield
    finally:
        for key in _VARIABLE_COLLECTIONS:
            v1.get_collection_ref(key)[:] = original[key]


def _broadcast_warm_value(variable: tf.Variable, initializer: tf.Operation) -> None:
    """Make the variable's original initializer broadcast the value of its warm start."""
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
    """Return the vocabularies with local files; those of a remote store are fetched to `folder`."""

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
