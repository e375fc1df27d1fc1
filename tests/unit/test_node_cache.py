"""Copies shared by the processes of a node: filled once, deleted with the last reader, also after a SIGKILL."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ray_estimator._storage.locks import exclusive_lock
from ray_estimator._storage.node_cache import shared_copy

READER = """
from pathlib import Path
from ray_estimator._storage.node_cache import shared_copy
with shared_copy("abandoned", lambda folder: Path(folder, "file").write_text("whole")):
    print("open", flush=True)
    input()
"""
FILLER = """
from pathlib import Path
from ray_estimator._storage.node_cache import shared_copy
def fill(folder):
    Path(folder, "file").write_text("half")
    print("open", flush=True)
    input()
with shared_copy("key", fill):
    pass
"""
LOCKED = """
import sys
from ray_estimator._storage.locks import exclusive_lock
with exclusive_lock(sys.argv[1], 60) as is_held:
    print("open" if is_held else "timeout", flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty temporary folder for each test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@contextmanager
def running(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has printed "open"; killed at the end of the block."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "open"
            yield process
        finally:
            process.kill()


def fill(folder: str) -> None:
    Path(folder, "file").write_text("whole")


def files(node: Path) -> list[str]:
    return sorted(path.name for path in node.rglob("*"))


def test_a_copy_is_filled_once_for_concurrent_readers(node: Path) -> None:
    with running(READER), shared_copy("abandoned", pytest.fail) as copy:
        assert Path(copy, "file").read_text() == "whole"


def test_the_last_reader_deletes_the_copy_and_its_lock(node: Path) -> None:
    with shared_copy("key", fill) as copy, shared_copy("key", pytest.fail) as same:
        assert copy == same
    assert [name for name in files(node) if not name.startswith("ray-estimator-copies-")] == []


def test_the_copy_of_a_killed_reader_is_deleted_by_the_next_one_that_finishes(node: Path) -> None:
    with running(READER), shared_copy("key", fill):
        pass
    assert "abandoned" in files(node)
    with shared_copy("key", fill):
        pass
    assert "abandoned" not in files(node)


def test_a_copy_whose_filler_was_killed_is_filled_again(node: Path) -> None:
    with running(FILLER):
        pass
    assert "key.partial" in files(node)
    with shared_copy("key", fill) as copy:
        assert Path(copy, "file").read_text() == "whole"
        assert "key.partial" not in files(node)


def test_an_error_while_filling_leaves_no_files(node: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), shared_copy("key", lambda folder: 1 // 0):
            pass
        assert not {"key", "key.partial"} & set(files(node))


def test_an_exclusive_lock_waits_for_its_holder_and_is_free_after_its_death(node: Path) -> None:
    path = str(node / "lock")
    with running(LOCKED, path), exclusive_lock(path, 0) as is_held:
        assert not is_held
    with exclusive_lock(path, 0) as is_held:
        assert is_held
