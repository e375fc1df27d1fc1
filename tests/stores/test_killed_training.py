"""A training process killed at any time leaves a complete checkpoint, from which the next one resumes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from ray_estimator._checkpoints.store import CheckpointStore
from ray_estimator._storage.storage import Storage

SCRIPT = Path(__file__).with_name("training_script.py")
ENDLESS = 10**9
START_SECS = 120.0


def start(model_dir: str, options: Mapping[str, Any], last_step: int) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(SCRIPT), model_dir, json.dumps(options), str(last_step)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)


def wait_for_a_save(store: CheckpointStore, after: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the process has published a step greater than `after`."""
    deadline = time.monotonic() + START_SECS
    while (newest := store.latest()) is None or newest.step <= after:
        assert process.poll() is None, "Training ended by itself."
        assert time.monotonic() < deadline, "Training published nothing."
        time.sleep(0.02)


def readable_step(store: CheckpointStore, folder: Path) -> int:
    """The step of the newest checkpoint; every one of its variables can be read."""
    newest = store.latest()
    assert newest is not None
    reader = tf.train.load_checkpoint(store.fetch(newest, str(folder)))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)
    assert reader.get_tensor("global_step") == newest.step
    return newest.step


@pytest.mark.kills
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_killed_at_random_times_resumes_from_a_complete_checkpoint(
    object_store: tuple[str, Mapping[str, Any]], tmp_path: Path, kills: int
) -> None:
    model_dir, options = object_store
    store = CheckpointStore(model_dir, Storage(options))
    moments = random.Random(0)
    step = -1
    for number in range(kills):
        process = start(model_dir, options, ENDLESS)
        try:
            wait_for_a_save(store, step, process)
            # At a random time during the following saves.
            time.sleep(moments.uniform(0.0, 0.5))
        finally:
            process.kill()
            process.wait()
        folder = tmp_path / str(number)
        folder.mkdir()
        found = readable_step(store, folder)
        assert found > step
        step = found

    last = start(model_dir, options, step + 7)
    assert last.wait(START_SECS) == 0
    (tmp_path / "end").mkdir()
    assert readable_step(store, tmp_path / "end") == step + 7
