"""Read event files from any store."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._storage.storage import Storage
from ray_estimator._tf_private import sessions

logger = logging.getLogger(__name__)


def scalars(storage: Storage, url: str, pattern: str) -> dict[int, dict[str, float]]:
    """Return the scalars in the event files under `url` that match `pattern`, by ascending global step and tag.

    The last value of a step and tag counts. The rest of a damaged file is skipped with a warning.
    """
    found: dict[int, dict[str, float]] = {}
    for file in storage.glob(url, pattern):
        for event in _events(storage, file):
            values = {value.tag: value.simple_value for value in event.summary.value if value.HasField("simple_value")}
            if values:
                found.setdefault(int(event.step), {}).update(values)
    return dict(sorted(found.items()))


def _events(storage: Storage, url: str) -> Iterator[Any]:
    with _local_copy(storage, url) as path:
        try:
            with sessions.without_deprecation_notices():
                events = v1.train.summary_iterator(path)
            yield from events
        except tf.errors.DataLossError as error:
            # A file that is still being written also ends like this.
            logger.warning("Skipping the rest of the event file %s, which is damaged or not complete: %s", url, error)


@contextlib.contextmanager
def _local_copy(storage: Storage, url: str) -> Iterator[str]:
    local = storage.local_path(url)
    if local is not None:
        yield local
        return
    with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
        copy = os.path.join(folder, "events")
        storage.get_file(url, copy)
        yield copy
