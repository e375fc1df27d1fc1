"""`stage()` in model_fn, input_fn and hooks: it knows the storage options of the run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from support.staged_model import input_fn, model_fn, serving_input_receiver_fn
from support.stores import FileServer

from ray_estimator import stage

v1 = tf.compat.v1


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with FileServer(password="open sesame").running() as server:
        server.files |= {"/vocab.txt": b"a\nb\nc\n", "/words.txt": b"b\nc\na\nb\n"}
        yield server


def params(store: FileServer) -> dict[str, Any]:
    return {"vocabulary": store.url("/vocab.txt"), "words": store.url("/words.txt")}


class Stages(v1.train.SessionRunHook):
    def __init__(self, url: str) -> None:
        self.url = url
        self.paths: list[str] = []

    def after_create_session(self, session: Any, coord: Any) -> None:
        self.paths.append(stage(self.url))


def test_every_verb_stages_with_the_options_of_the_run(in_process: Any, store: FileServer, tmp_path: Path) -> None:
    estimator = in_process(model_fn, params=params(store), storage_options=store.options)
    hook = Stages(store.url("/vocab.txt"))
    estimator.train(input_fn, steps=3, hooks=[hook])
    assert Path(hook.paths[0]).read_bytes() == store.files["/vocab.txt"]
    assert estimator.evaluate(input_fn)["global_step"] == 3
    assert [int(row["id"]) for row in estimator.predict(input_fn)] == [1, 2, 0, 1]
    exported = estimator.export_savedmodel(str(tmp_path / "export"), serving_input_receiver_fn)
    assert (Path(exported) / "assets" / "vocab.txt").read_bytes() == store.files["/vocab.txt"]
    assert store.asked["GET", "/vocab.txt"] == 1


def test_the_options_of_a_run_end_with_it(in_process: Any, store: FileServer) -> None:
    estimator = in_process(model_fn, params=params(store), storage_options=store.options).train(input_fn, steps=1)
    rows = estimator.predict(input_fn)
    next(rows)
    with pytest.raises(FileNotFoundError):
        stage(store.url("/vocab.txt"))
    assert len(list(rows)) == 3


def test_without_the_options_the_error_names_the_file(in_process: Any, store: FileServer) -> None:
    with pytest.raises(FileNotFoundError, match=r"storage_options.*words\.txt"):
        in_process(model_fn, params=params(store)).train(input_fn, steps=1)
