"""`stage()` on workers and tasks of one node: one fetch for all, with the options of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.staged_model import input_fn, model_fn
from support.stores import FileServer

pytestmark = pytest.mark.ray


def test_two_workers_and_their_tasks_fetch_a_file_once(on_ray: Any, tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.mkdir()
    with FileServer(password="open sesame").running() as store:
        store.files |= {"/vocab.txt": b"a\nb\nc\n", "/words.txt": b"b\nc\na\nb\n"}
        estimator = on_ray(
            model_fn,
            params={"vocabulary": store.url("/vocab.txt"), "words": store.url("/words.txt")},
            storage_options=store.options,
            worker_runtime_env={"env_vars": {"TMPDIR": str(node)}},
        )
        estimator.train(input_fn, steps=3)
        assert estimator.evaluate(input_fn)["global_step"] == 3
        assert [int(row["id"]) for row in estimator.predict(input_fn)] == [1, 2, 0, 1]
        assert store.asked["GET", "/vocab.txt"] == store.asked["GET", "/words.txt"] == 1
    assert len(list(node.rglob("vocab.txt"))) == 1
