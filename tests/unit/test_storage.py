"""Files by URL: normalization, options, local files. The contract of all stores is tested in tests/stores."""

from __future__ import annotations

import pickle
import uuid
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ray_estimator._storage import retry
from ray_estimator._storage.storage import Storage


@pytest.fixture
def storage() -> Storage:
    return Storage()


def test_local_paths_are_normalized_to_an_absolute_path(
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


def test_a_failed_write_leaves_the_old_content_and_no_temporary_files(storage: Storage, tmp_path: Path) -> None:
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


def test_local_files_get_the_default_permissions(storage: Storage, tmp_path: Path) -> None:
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


def test_put_dir_copies_the_last_files_after_all_others(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1", "b", "c"):
        storage.write_bytes(f"{tmp_path}/source/{name}", b"")
    arrived: list[str] = []
    monkeypatch.setattr(Storage, "put_file", lambda self, local_path, url: arrived.append(url))
    storage.put_dir(f"{tmp_path}/source", "memory://ordered", last=["b", "missing"])
    assert arrived == ["memory://ordered/a/1", "memory://ordered/c", "memory://ordered/b"]


def test_create_recognizes_any_error_for_an_existing_file_and_raises_others(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, path: str, value: bytes, mode: str) -> None:
        raise OSError("412, or the network")

    monkeypatch.setattr(retry, "FIRST_DELAY_SECS", 0)
    storage.write_bytes("memory://claims/taken", b"")
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(FileExistsError):
        storage.create_bytes("memory://claims/taken", b"")
    with pytest.raises(OSError, match="or the network"):
        storage.create_bytes("memory://claims/free", b"")


def test_pickles_with_its_options_and_shows_no_secret() -> None:
    storage = Storage({"key": "id", "secret": "hunter2"})
    assert pickle.loads(pickle.dumps(storage)) == storage
    assert "hunter2" not in repr(storage)
    assert "secret" in repr(storage)
    assert hash(storage) == hash(Storage({"key": "id", "secret": "hunter2"}))


class _CachingFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Caches its first listing, like the file systems of object stores, and lists the directory itself."""

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


def test_list_dir_sees_new_files_of_other_processes_but_not_the_directory_itself(
    storage: Storage, caching_store: str
) -> None:
    _CachingFileSystem.entries = ["a"]
    assert storage.list_dir(caching_store) == ["a"]
    _CachingFileSystem.entries = ["a", "b"]
    assert storage.list_dir(caching_store) == ["a", "b"]


def test_exists_raises_errors_of_the_store(storage: Storage, caching_store: str) -> None:
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
