"""Read the variables of a checkpoint."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ray_estimator._checkpoints.store import Checkpoint, CheckpointStore
from ray_estimator._engine.checkpointing.local_copies import fetched
from ray_estimator._storage.storage import Storage
from ray_estimator.config import RunConfig


def names(model_dir: str, config: RunConfig, checkpoint: Checkpoint) -> list[str]:
    """Return the name of every variable in `checkpoint`."""
    with fetched(CheckpointStore(model_dir, Storage(config.storage_options)), checkpoint) as prefix:
        return [name for name, _ in tf.train.list_variables(prefix)]


def value(model_dir: str, config: RunConfig, checkpoint: Checkpoint, name: str) -> Any:
    """Return the value of one variable in `checkpoint`.

    Raises:
        ValueError: The checkpoint has no such variable.
    """
    with fetched(CheckpointStore(model_dir, Storage(config.storage_options)), checkpoint) as prefix:
        reader = tf.train.load_checkpoint(prefix)
        if not reader.has_tensor(name):
            known = ", ".join(sorted(reader.get_variable_to_shape_map()))
            raise ValueError(f"{checkpoint.path} has no variable {name!r}. It has: {known}.")
        return reader.get_tensor(name)
