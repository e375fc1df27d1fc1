"""The contract of a store: the same tests on local files, in memory, and on real object stores."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.saves import Place

from ray_estimator._storage import remote
from ray_estimator._storage.storage import Storage

PART = 5 * 2**20  # the smallest that S3 accepts


@pytest.fixture
def storage(place: Place) -> Storage:
    return place.storage


@pytest.fixture
def root(place: Place) -> str:
    return place.url


def test_a_written_file_can_be_read(storage: Storage, root: str) -> None:
    url = storage.join(root, "a", "b.bin")
    storage.write_bytes(url, b"first")
    storage.write_bytes(url, b"the second\x00")
    assert storage.read_bytes(url) == b"the second\x00"
    assert storage.size(url) == 11


def test_create_writes_a_new_file(storage: Storage, root: str) -> None:
    url = storage.join(root, "new", "lease")
    storage.create_bytes(url, b"mine")
    assert storage.read_bytes(url) == b"mine"
    assert storage.list_dir(storage.join(root, "new")) == ["lease"]


def test_create_refuses_to_replace_a_file(storage: Storage, root: str) -> None:
    url = storage.join(root, "new", "lease")
    storage.create_bytes(url, b"first")
    with pytest.raises(FileExistsError, match="lease"):
        storage.create_bytes(url, b"second")
    assert storage.read_bytes(url) == b"first"
    assert storage.list_dir(storage.join(root, "new")) == ["lease"]
    storage.remove(url)
    storage.create_bytes(url, b"third")
    assert storage.read_bytes(url) == b"third"


def test_only_one_of_many_concurrent_creates_succeeds(storage: Storage, root: str) -> None:
    start = threading.Barrier(16)

    def create(url: str, content: bytes) -> bytes | None:
        start.wait(60)
        try:
            storage.create_bytes(url, content)
        except FileExistsError:
            return None
        return content

    with ThreadPoolExecutor(16) as threads:
        for attempt in range(20):
            url = storage.join(root, f"lease-{attempt}")
            results = list(threads.map(lambda i, url=url: create(url, b"%d" % i), range(16)))  # type: ignore[misc]
            assert [result for result in results if result] == [storage.read_bytes(url)]


def test_a_missing_file_is_a_file_not_found_error(storage: Storage, root: str, tmp_path: Path) -> None:
    url = storage.join(root, "missing")
    assert not storage.exists(url)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(url)
    with pytest.raises(FileNotFoundError):
        storage.size(url)
    with pytest.raises(FileNotFoundError):
        storage.get_file(url, str(tmp_path / "copy"))
    with pytest.raises(FileNotFoundError):
        storage.get_dir(url, str(tmp_path / "copies"))


def test_describe_lists_the_files_of_a_directory(storage: Storage, root: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.describe(storage.join(root, "a"))
    storage.write_bytes(storage.join(root, "a", "b"), b"first")
    storage.write_bytes(storage.join(root, "a", "deep", "c"), b"")
    assert storage.describe(storage.join(root, "a", "b"))[""]["size"] == 5
    below = storage.describe(storage.join(root, "a"))
    assert {name: info["size"] for name, info in below.items()} == {"b": 5, "deep/c": 0}


def test_glob_matches_one_pattern_per_level(storage: Storage, root: str) -> None:
    names = ["eval/b.tfevents.1", "eval/a.tfevents.2", "eval/notes", "eval_x/c.tfevents.3", "eval/deep/d.tfevents.4"]
    for name in [*names, "train/e.tfevents.5"]:
        storage.write_bytes(storage.join(root, name), b"events")

    def found(pattern: str) -> list[str]:
        return [url.removeprefix(storage.join(root, "")) for url in storage.glob(root, pattern)]

    assert found("eval/*.tfevents.*") == ["eval/a.tfevents.2", "eval/b.tfevents.1"]
    assert found("eval*/*.tfevents.*") == ["eval/a.tfevents.2", "eval/b.tfevents.1", "eval_x/c.tfevents.3"]
    assert found("eval/notes") == ["eval/notes"]
    assert found("none/*") == found("eval/*.none") == []


def test_put_and_get_a_file(storage: Storage, root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    url = storage.join(root, "new", "copy")
    storage.put_file(str(source), url)
    storage.get_file(url, str(tmp_path / "deep" / "back"))
    assert (tmp_path / "deep" / "back").read_bytes() == b"weights"
    assert source.exists()


def test_put_with_move_puts_the_content_at_the_url(storage: Storage, root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    url = storage.join(root, "sub", "moved")
    storage.put_file(str(source), url, move=True)
    assert storage.read_bytes(url) == b"weights"
    assert source.exists() == (storage.local_path(url) is None)


def test_put_and_get_a_directory(storage: Storage, root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "variables").mkdir(parents=True)
    (source / "saved_model.pb").write_bytes(b"graph")
    (source / "variables" / "variables.index").write_bytes(b"index")
    url = storage.join(root, "export", "1")
    storage.put_dir(str(source), url)
    storage.put_dir(str(source), url)
    storage.get_dir(url, str(tmp_path / "back"))
    back = {str(p.relative_to(tmp_path / "back")): p.read_bytes() for p in (tmp_path / "back").rglob("*.*")}
    assert back == {"saved_model.pb": b"graph", os.path.join("variables", "variables.index"): b"index"}


def test_is_file_distinguishes_files_from_directories(storage: Storage, root: str) -> None:
    storage.write_bytes(storage.join(root, "run", "a"), b"")
    assert storage.is_file(storage.join(root, "run", "a"))
    assert not storage.is_file(storage.join(root, "run"))
    assert not storage.is_file(storage.join(root, "missing"))


def test_list_dir_gives_sorted_base_names_of_files_and_directories(storage: Storage, root: str) -> None:
    assert storage.list_dir(storage.join(root, "run")) == []
    storage.write_bytes(storage.join(root, "run", "b"), b"")
    storage.write_bytes(storage.join(root, "run", "a", "deeper"), b"")
    assert storage.list_dir(storage.join(root, "run")) == ["a", "b"]
    assert storage.list_dir(storage.join(root, "run") + "/") == ["a", "b"]
    assert storage.list_dir(storage.join(root, "run", "b")) == []


def test_a_file_can_be_removed_twice(storage: Storage, root: str) -> None:
    url = storage.join(root, "run", "a")
    storage.write_bytes(url, b"")
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_removing_a_directory_removes_its_content_only(storage: Storage, root: str) -> None:
    storage.write_bytes(storage.join(root, "run", "deep", "a"), b"")
    storage.write_bytes(storage.join(root, "run2", "b"), b"")
    storage.remove_dir(storage.join(root, "run"))
    storage.remove_dir(storage.join(root, "run"))
    assert not storage.exists(storage.join(root, "run", "deep", "a"))
    assert storage.exists(storage.join(root, "run2", "b"))


def test_make_dir_accepts_an_existing_directory(place: Place, storage: Storage, root: str) -> None:
    url = storage.join(root, "a", "b")
    storage.make_dir(url)
    storage.make_dir(url)
    # Object stores have no directories, only common prefixes of files.
    assert storage.exists(url) == (place.kind in ("local", "memory"))
    assert storage.list_dir(url) == []


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART])
def test_a_file_on_s3_has_the_same_content_in_one_part_or_several(
    object_store: tuple[str, Mapping[str, Any]], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PART_BYTES", PART)
    monkeypatch.setattr(remote.RemoteFiles, "range_bytes", PART // 3)
    url, options = object_store
    storage, content = Storage(options), os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    storage.put_file(str(tmp_path / "file"), url)
    assert b"".join(storage.read_chunks(url)) == content
    assert storage.read_bytes(url) == content
