"""`stage()`: one local copy per node, downloaded once, and again when the file has changed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.stores import FileServer

from ray_estimator import stage
from ray_estimator._storage.staging import iterating_for, staging_for
from ray_estimator._storage.storage import Storage


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty temporary folder for each test."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer().running() as server:
        yield server


@pytest.fixture
def guarded() -> Iterator[FileServer]:
    with FileServer(password="open sesame").running() as server:
        server.files["/vocab.txt"] = b"a\nb\n"
        yield server


@pytest.fixture
def memory() -> Iterator[str]:
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    Storage().remove_dir(url)


def test_a_remote_file_becomes_a_local_one_of_the_same_name(server: FileServer, node: Path) -> None:
    server.files["/data/vocab.txt"] = b"a\nb\n"
    path = stage(server.url("/data/vocab.txt"))
    assert os.path.basename(path) == "vocab.txt"
    assert Path(path).read_bytes() == b"a\nb\n"
    assert Path(path).is_relative_to(node)


def test_a_file_is_downloaded_once(server: FileServer) -> None:
    server.files["/vocab.txt"] = b"a"
    assert len({stage(server.url("/vocab.txt")) for _ in range(3)}) == 1
    assert server.asked["GET", "/vocab.txt"] == 1


def test_a_changed_file_is_downloaded_again_and_the_old_copy_stays(server: FileServer) -> None:
    server.files["/vocab.txt"] = b"old"
    old = stage(server.url("/vocab.txt"))
    server.files["/vocab.txt"] = b"new"
    new = stage(server.url("/vocab.txt"))
    assert Path(old).read_bytes() == b"old"
    assert Path(new).read_bytes() == b"new"
    assert os.path.basename(new) == "vocab.txt"


def test_files_of_the_same_name_are_kept_apart(server: FileServer) -> None:
    server.files |= {"/a/vocab.txt": b"same", "/b/vocab.txt": b"same"}
    assert stage(server.url("/a/vocab.txt")) != stage(server.url("/b/vocab.txt"))


def test_concurrent_processes_download_a_file_once(server: FileServer) -> None:
    server.files["/large.bin"] = os.urandom(8 * 1024 * 1024)
    code = f"import hashlib, ray_estimator; path = ray_estimator.stage({server.url('/large.bin')!r}); print(path)"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    paths = {process.communicate(timeout=120)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == server.files["/large.bin"]
    assert server.asked["GET", "/large.bin"] == 1


def test_a_killed_download_does_not_block_the_next_one(server: FileServer, node: Path) -> None:
    server.files["/vocab.txt"] = b"whole"
    code = f"""
import os, ray_estimator
from ray_estimator._storage.storage import Storage
def get_file(self, url, local_path):
    os.makedirs(os.path.dirname(local_path))
    open(local_path, "wb").write(b"who")
    os._exit(3)
Storage.get_file = get_file
ray_estimator.stage({server.url("/vocab.txt")!r})
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 3
    assert list(node.rglob("vocab.txt")), "it died before it fetched"
    assert Path(stage(server.url("/vocab.txt"))).read_bytes() == b"whole"


def test_a_file_that_keeps_changing_is_an_error(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/vocab.txt"] = b"0"
    get_file = Storage.get_file

    def get_and_change(self: Storage, url: str, local_path: str) -> None:
        get_file(self, url, local_path)
        server.files["/vocab.txt"] += b"+"

    monkeypatch.setattr(Storage, "get_file", get_and_change)
    with pytest.raises(OSError, match=r"File kept changing during download.*/vocab\.txt"):
        stage(server.url("/vocab.txt"))


def test_a_directory_is_staged_whole(memory: str) -> None:
    for name in ("part-0", "sub/part-1"):
        Storage().write_bytes(f"{memory}/records/{name}", name.encode())
    path = Path(stage(f"{memory}/records"))
    assert path.name == "records"
    assert {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} == {"part-0", "sub/part-1"}
    Storage().write_bytes(f"{memory}/records/part-2", b"new")
    assert (Path(stage(f"{memory}/records/")) / "part-2").read_bytes() == b"new"


def test_local_paths_are_returned_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("a")
    assert stage(str(file)) == stage(file) == stage(f"file://{file}") == str(file)


def test_a_missing_file_is_named_in_the_error(server: FileServer, memory: str, tmp_path: Path) -> None:
    for url in (server.url("/missing.txt"), f"{memory}/missing.txt", str(tmp_path / "missing.txt")):
        with pytest.raises(FileNotFoundError) as raised:
            stage(url)
        assert url in str(raised.value)


def test_a_folder_of_another_user_is_refused(server: FileServer, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/vocab.txt"] = b"a"
    stage(server.url("/vocab.txt"))
    (folder,) = node.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    folder.rename(node / f"ray-estimator-staged-{me + 1}")
    with pytest.raises(PermissionError, match="TMPDIR"):
        stage(server.url("/vocab.txt"))


# Storage options


def refused(guarded: FileServer) -> bool:
    try:
        stage(guarded.url("/vocab.txt"))
    except FileNotFoundError:  # fsspec's error for a 401
        return True
    return False


def test_the_options_of_a_run_apply_inside_it_only(guarded: FileServer) -> None:
    assert refused(guarded)
    with staging_for("/models/a", guarded.options):
        assert not refused(guarded)
    assert refused(guarded)


def test_explicit_options_take_precedence(guarded: FileServer) -> None:
    assert stage(guarded.url("/vocab.txt"), storage_options=guarded.options)
    with staging_for("/models/a", guarded.options), pytest.raises(FileNotFoundError, match="storage_options"):
        stage(guarded.url("/vocab.txt"), storage_options={})


def test_options_for_another_kind_of_store_are_not_used(guarded: FileServer) -> None:
    with staging_for("memory://models/a", guarded.options):
        assert refused(guarded)
    with staging_for("http://models/a", guarded.options):
        assert not refused(guarded)


def test_the_consumer_of_an_iterator_does_not_get_its_options(guarded: FileServer) -> None:
    ended = []

    def batches() -> Iterator[bool]:
        try:
            yield refused(guarded)
            yield refused(guarded)
        finally:
            ended.append(refused(guarded))

    seen: list[Any] = []
    stream = iterating_for("/models/a", guarded.options, batches())  # type: ignore[arg-type]
    for inside in stream:
        seen.append((inside, refused(guarded)))
    assert seen == [(False, True), (False, True)]
    left = iterating_for("/models/a", guarded.options, batches())  # type: ignore[arg-type]
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert ended == [False, False]


def test_credentials_are_not_logged(guarded: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with staging_for("/models/a", guarded.options):
        stage(guarded.url("/vocab.txt"))
        with pytest.raises(FileNotFoundError) as raised:
            stage(guarded.url("/missing.txt"))
    assert "open sesame" not in caplog.text
    assert "open sesame" not in str(raised.value)
