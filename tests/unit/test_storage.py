"""One contract for every store, and what is special to local files."""

from __future__ import annotations

import os
import pickle
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ray_estimator._storage import Storage


@pytest.fixture(params=["local", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty place on each store."""
    if request.param == "memory":
        url = f"memory://{uuid.uuid4().hex}"
        yield url
        Storage().remove_dir(url)
    else:
        yield f"file://{tmp_path}" if request.param == "file" else str(tmp_path)


@pytest.fixture
def storage() -> Storage:
    return Storage()


def test_reads_what_was_written(storage: Storage, root: str) -> None:
    url = storage.join(root, "a", "b.bin")
    storage.write_bytes(url, b"first")
    storage.write_bytes(url, b"the second\x00")
    assert storage.read_bytes(url) == b"the second\x00"
    assert storage.size(url) == 11


def test_create_makes_a_file_that_is_not_there(storage: Storage, root: str) -> None:
    url = storage.join(root, "new", "lease")
    storage.create_bytes(url, b"mine")
    assert storage.read_bytes(url) == b"mine"
    assert storage.list_dir(storage.join(root, "new")) == ["lease"]


def test_create_refuses_a_file_that_is_there_and_leaves_it(storage: Storage, root: str) -> None:
    url = storage.join(root, "new", "lease")
    storage.create_bytes(url, b"first")
    with pytest.raises(FileExistsError, match="lease"):
        storage.create_bytes(url, b"second")
    assert storage.read_bytes(url) == b"first"
    assert storage.list_dir(storage.join(root, "new")) == ["lease"]
    storage.remove(url)
    storage.create_bytes(url, b"third")
    assert storage.read_bytes(url) == b"third"


def test_of_many_that_create_at_once_one_wins(storage: Storage, root: str) -> None:
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


def test_describes_files_and_what_is_below_a_directory(storage: Storage, root: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.describe(storage.join(root, "a"))
    storage.write_bytes(storage.join(root, "a", "b"), b"first")
    storage.write_bytes(storage.join(root, "a", "deep", "c"), b"")
    assert storage.describe(storage.join(root, "a", "b"))[""]["size"] == 5
    below = storage.describe(storage.join(root, "a"))
    assert {name: info["size"] for name, info in below.items()} == {"b": 5, "deep/c": 0}


def test_globs_level_by_level(storage: Storage, root: str) -> None:
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


def test_a_put_that_may_move_leaves_the_content_at_the_url(storage: Storage, root: str, tmp_path: Path) -> None:
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


def test_put_dir_keeps_files_back_until_all_others_are_there(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1", "b", "c"):
        storage.write_bytes(f"{tmp_path}/source/{name}", b"")
    arrived: list[str] = []
    monkeypatch.setattr(Storage, "put_file", lambda self, local_path, url: arrived.append(url))
    storage.put_dir(f"{tmp_path}/source", "memory://ordered", last=["b", "missing"])
    assert arrived == ["memory://ordered/a/1", "memory://ordered/c", "memory://ordered/b"]


def test_create_takes_a_stores_own_way_of_refusing_and_raises_other_errors(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, path: str, value: bytes, mode: str) -> None:
        raise OSError("412, or the network")

    storage.write_bytes("memory://claims/taken", b"")
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(FileExistsError):
        storage.create_bytes("memory://claims/taken", b"")
    with pytest.raises(OSError, match="or the network"):
        storage.create_bytes("memory://claims/free", b"")


def test_is_file_tells_files_from_directories(storage: Storage, root: str) -> None:
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


def test_removing_twice_is_fine(storage: Storage, root: str) -> None:
    url = storage.join(root, "run", "a")
    storage.write_bytes(url, b"")
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_removing_a_directory_takes_all_below_and_nothing_beside(storage: Storage, root: str) -> None:
    storage.write_bytes(storage.join(root, "run", "deep", "a"), b"")
    storage.write_bytes(storage.join(root, "run2", "b"), b"")
    storage.remove_dir(storage.join(root, "run"))
    storage.remove_dir(storage.join(root, "run"))
    assert not storage.exists(storage.join(root, "run", "deep", "a"))
    assert storage.exists(storage.join(root, "run2", "b"))


def test_make_dir_takes_what_is_there(storage: Storage, root: str) -> None:
    url = storage.join(root, "a", "b")
    storage.make_dir(url)
    storage.make_dir(url)
    assert storage.exists(url)
    assert storage.list_dir(url) == []


def test_local_spellings_become_one_absolute_path(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = str(tmp_path / "run")
    spellings = ["run", "./run/", "~/run", run, run + "/", f"file://{run}", f"local://{run}/", "other/../run"]
    assert {storage.normalize(url) for url in spellings} == {run}
    assert {storage.local_path(url) for url in spellings} == {run}


@pytest.mark.parametrize(
    ("url", "normal"), [("s3://bucket/run/", "s3://bucket/run"), ("memory://", "memory://"), ("gs://b", "gs://b")]
)
def test_remote_urls_lose_a_trailing_slash_and_have_no_local_path(storage: Storage, url: str, normal: str) -> None:
    assert storage.normalize(url) == normal
    assert storage.local_path(url) is None


def test_an_empty_url_is_refused(storage: Storage) -> None:
    with pytest.raises(ValueError, match="empty string"):
        storage.normalize("")


@pytest.mark.parametrize(
    ("base", "joined"),
    [("/a", "/a/b/c"), ("/a/", "/a/b/c"), ("/", "/b/c"), ("memory://", "memory://b/c"), ("s3://x/y", "s3://x/y/b/c")],
)
def test_join(storage: Storage, base: str, joined: str) -> None:
    assert storage.join(base, "b", "c") == joined


def test_a_write_that_fails_leaves_the_old_content_and_no_debris(storage: Storage, tmp_path: Path) -> None:
    target = tmp_path / "state"
    storage.write_bytes(str(target), b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(str(target), "no bytes")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        storage.put_file(str(tmp_path / "missing"), str(target))
    assert target.read_bytes() == b"old"
    assert storage.list_dir(str(tmp_path)) == ["state"]


def test_an_open_reader_of_a_replaced_local_file_keeps_the_old_content(storage: Storage, tmp_path: Path) -> None:
    target = tmp_path / "state"
    storage.write_bytes(str(target), b"old")
    with target.open("rb") as reader:
        storage.write_bytes(str(target), b"new")
        assert reader.read() == b"old"
    assert target.read_bytes() == b"new"


def test_local_files_get_the_permissions_of_any_other_file(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    storage.write_bytes(str(tmp_path / "written"), b"")
    storage.put_file(str(tmp_path / "plain"), str(tmp_path / "put"))
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "written", "put")}
    assert len(modes) == 1


def test_move_falls_back_to_a_copy_between_file_systems(storage: Storage, tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    source = shared_memory / uuid.uuid4().hex
    source.write_bytes(b"weights")
    try:
        storage.put_file(str(source), str(tmp_path / "moved"), move=True)
    finally:
        source.unlink(missing_ok=True)
    assert (tmp_path / "moved").read_bytes() == b"weights"
    assert storage.list_dir(str(tmp_path)) == ["moved"]


def test_pickles_with_its_options_and_shows_no_secret() -> None:
    storage = Storage({"key": "id", "secret": "hunter2"})
    assert pickle.loads(pickle.dumps(storage)) == storage
    assert "hunter2" not in repr(storage)
    assert "secret" in repr(storage)
    assert hash(storage) == hash(Storage({"key": "id", "secret": "hunter2"}))


class _CachingFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Remembers its first listing, as object stores' file systems do, and lists the directory itself."""

    protocol = "caching"
    cachable = False
    entries: ClassVar[list[str]] = []
    remembered: ClassVar[list[str] | None] = None

    def ls(self, path: str, detail: bool = True, **kwargs: object) -> list[dict[str, object]]:
        if _CachingFileSystem.remembered is None:
            _CachingFileSystem.remembered = [f"{path}/", *(f"{path}/{name}" for name in self.entries)]
        return [{"name": name, "size": 0, "type": "file"} for name in _CachingFileSystem.remembered]

    def invalidate_cache(self, path: str | None = None) -> None:
        _CachingFileSystem.remembered = None

    def info(self, path: str, **kwargs: object) -> dict[str, object]:
        raise PermissionError(self.storage_options)


@pytest.fixture
def caching_store() -> str:
    fsspec.register_implementation("caching", _CachingFileSystem, clobber=True)
    return "caching://run"


def test_list_dir_sees_what_others_wrote_since_and_not_the_directory_itself(
    storage: Storage, caching_store: str
) -> None:
    _CachingFileSystem.entries = ["a"]
    assert storage.list_dir(caching_store) == ["a"]
    _CachingFileSystem.entries = ["a", "b"]
    assert storage.list_dir(caching_store) == ["a", "b"]


def test_exists_raises_the_stores_own_error_instead_of_saying_no(storage: Storage, caching_store: str) -> None:
    with pytest.raises(PermissionError):
        storage.exists(caching_store)


def test_options_reach_the_remote_store_and_leave_local_files_alone(caching_store: str, tmp_path: Path) -> None:
    storage = Storage({"endpoint": "here"})
    storage.write_bytes(str(tmp_path / "a"), b"local")
    assert storage.read_bytes(str(tmp_path / "a")) == b"local"
    with pytest.raises(PermissionError, match="'endpoint': 'here'"):
        storage.size(caching_store)


# Credentials


def test_credentials_in_options_and_urls_are_redacted_and_the_rest_is_not() -> None:
    storage = Storage(
        {
            "key": "AKIA4711",
            "secret": "AKIA4711-and-more",
            "client_kwargs": {"endpoint_url": "http://store:9000", "aws_session_token": "t0psecret"},
            "token": {"project": "deep", "private_key": "lines"},
            "use_ssl": False,
            "password": "x",
        }
    )

    assert storage.redacted("AKIA4711 AKIA4711-and-more t0psecret deep lines") == " ".join(["<redacted>"] * 5)
    assert storage.redacted("http://store:9000 False x") == "http://store:9000 False x"
    assert storage.redacted("sftp://me:pw@host/a or s3://bucket/a@b") == "sftp://<redacted>@host/a or s3://bucket/a@b"
