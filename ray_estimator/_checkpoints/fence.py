"""Fencing of worker groups: only the chief of the newest group of the newest driver may publish."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from ray_estimator._checkpoints.writers import Record, Token, Writers
from ray_estimator._process.identity import Process
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import ModelDirAccessError


def claim(model_dir: str, storage: Storage, token: Token) -> Callable[[], None]:
    """Make this process the writer of its driver's generation. Runs on the chief, before it restores.

    Args:
        model_dir: Local path or URL.
        storage: Accesses it.
        token: The driver's generation, and the number of the worker group, which grows with each start.

    Returns:
        The fence, to be called before and after every write that publishes. It raises `WriterFencedError` once there
        is a newer writer, and costs one listing.

    Raises:
        WriterFencedError: There already is a newer writer.
        ModelDirAccessError: The driver's lease is not visible here, so this is a different directory.
    """
    writers = Writers(model_dir, storage)
    writers.write(token, Record.begin(Process.current()))
    tokens = writers.tokens()
    writers.require_newest(token, tokens)
    if Token(token.generation) not in tokens:
        raise ModelDirAccessError.not_shared(writers.redacted_model_dir, f"the chief on host {socket.gethostname()}")
    groups = (old for old in tokens if old.generation == token.generation)
    writers.delete(old for old in groups if 0 < old.attempt < token.attempt - 1)
    return partial(writers.require_newest, token)
