"""model_dir as a cluster's workers see it, and what becomes of a group whose model_dir was taken over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import tensorflow as tf
from fsspec.implementations.memory import MemoryFileSystem
from support.models import endless_input_fn, linear_model_fn

from ray_estimator import ModelDirAccessError, WriterFencedError
from ray_estimator._checkpoints.writers import Record, Token
from ray_estimator._process.identity import Process
from ray_estimator._storage.storage import Storage

v1 = tf.compat.v1
pytestmark = pytest.mark.ray

PROGRAM = Path(__file__).with_name("two_nodes_program.py")


class OnlyHere(MemoryFileSystem):
    """A store of which only the process that registers it has heard."""

    protocol = "onlyhere"


def test_a_store_that_workers_cannot_open_is_refused_before_any_starts(on_ray: Callable[..., Any]) -> None:
    fsspec.register_implementation("onlyhere", OnlyHere, clobber=True)
    estimator = on_ray(linear_model_fn, params={}, model_dir="onlyhere://model")

    with pytest.raises(ModelDirAccessError) as refused:
        estimator.train(endless_input_fn, steps=1)

    assert refused.value.where.startswith("a worker on node ")
    assert "reading onlyhere://model/.preflight-" in str(refused.value)
    assert "Protocol not known: onlyhere" in str(refused.value)
    # Neither a chief's claim nor what was tried is there.
    assert Storage().list_dir("onlyhere://model") == []


def test_the_memory_of_the_driver_is_refused(on_ray: Callable[..., Any]) -> None:
    estimator = on_ray(linear_model_fn, params={}, model_dir="memory://model")

    with pytest.raises(ValueError, match=r"where workers cannot read it.*memory://model.*num_workers=0"):
        estimator.train(endless_input_fn, steps=1)


def may_mount() -> bool:
    try:
        return subprocess.run(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="needs unshare and the right to mount")
def test_a_directory_that_is_another_one_on_a_second_node_is_refused(tmp_path: Path) -> None:
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    path = os.pathsep.join([str(PROGRAM.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])

    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(model_dir)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        timeout=280,
        check=True,
    )

    assert done.stdout.startswith(f"model_dir {model_dir} cannot be used from a worker on node ")
    assert "a file that the driver wrote there is not visible here" in done.stdout
    assert "all nodes share" in done.stdout
    assert list(model_dir.iterdir()) == []


class BeTakenOver(v1.train.SessionRunHook):
    """Another driver takes the lease after step 3, as it may when this one showed no life for long."""

    def __init__(self, model_dir: str) -> None:
        self._model_dir = model_dir

    def after_run(self, run_context: Any, run_values: Any) -> None:
        if run_context.session.run(v1.train.get_global_step()) == 3:
            other = Record.begin(Process("elsewhere", 77, "another boot", 5))
            Storage().create_bytes(f"{self._model_dir}/.writers/{Token(9).file_name}", other.to_bytes())


def test_a_group_whose_model_dir_was_taken_over_ends_and_is_not_started_again(on_ray: Callable[..., Any]) -> None:
    estimator = on_ray(linear_model_fn, 1, params={}, max_failures=3, save_checkpoints_steps=2)

    with pytest.raises(WriterFencedError, match="taken over by process 77 on elsewhere"):
        estimator.train(endless_input_fn, steps=10**6, hooks=[partial(BeTakenOver, estimator.model_dir)])

    writers = sorted(path.name for path in (Path(estimator.model_dir) / ".writers").iterdir())
    assert writers == ["00000001-0001.json", "00000001.json", "00000009.json"]


def test_a_group_that_never_saves_ends_when_its_driver_has_lost_the_lease(on_ray: Callable[..., Any]) -> None:
    estimator = on_ray(linear_model_fn, 1, params={}, max_failures=3, save_checkpoints_secs=10**6)

    with pytest.raises(WriterFencedError, match="taken over by process 77 on elsewhere") as lost:
        estimator.train(endless_input_fn, steps=10**6, hooks=[partial(BeTakenOver, estimator.model_dir)])

    assert "aborted by its driver" in str(lost.value.__cause__)
