"""Checks of an export on the driver, and publication of a SavedModel."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ray_estimator import ModeKeys
from ray_estimator._storage import retry
from ray_estimator._storage import saved_model as saved_model_module
from ray_estimator._storage.saved_model import publish, remove, staging_dir
from ray_estimator._storage.storage import Storage
from ray_estimator._validation.exports import checked_assets, checked_receiver_fns

NOW = 1_700_000_000
FILES = ["assets/words.txt", "saved_model.pb", "variables/variables.data-00000-of-00001", "variables/variables.index"]


class Clock:
    """A clock that advances only by sleeping."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def time(self) -> float:
        return self.now

    def sleep(self, secs: float) -> None:
        self.now += secs


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(saved_model_module, "time", clock)
    monkeypatch.setattr(retry, "FIRST_DELAY_SECS", 0)
    return clock


class WatchedFileSystem(MemoryFileSystem):
    """A store that calls back before and after each write."""

    protocol = "watched"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    before: ClassVar[Callable[[str], None]] = staticmethod(lambda path: None)
    after: ClassVar[Callable[[str], None]] = staticmethod(lambda path: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("watched://", "memory://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if mode == "create":
            super().pipe_file(path, value, mode, **kwargs)
            return
        type(self).before(path)
        super().pipe_file(path, value, mode, **kwargs)
        type(self).after(path)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty directory on a watched store."""
    fsspec.register_implementation("watched", WatchedFileSystem, clobber=True)
    yield f"watched://{uuid.uuid4().hex}"
    WatchedFileSystem.before = WatchedFileSystem.after = staticmethod(lambda path: None)


@pytest.fixture(params=["local", "store"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "store":
        return str(request.getfixturevalue("store"))
    (tmp_path / "base").mkdir()
    return str(tmp_path / "base")


@pytest.fixture
def saved_model(tmp_path: Path) -> Callable[[], str]:
    """Create local folders that look like SavedModels."""

    def make() -> str:
        folder = tmp_path / uuid.uuid4().hex
        for name in FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(folder.name)
        return str(folder)

    return make


def files(url: str) -> dict[str, str]:
    """Contents by path below `url`."""
    storage = Storage()
    found = {}
    for name in storage.list_dir(url):
        below = storage.join(url, name)
        if storage.is_file(below):
            found[name] = storage.read_bytes(below).decode()
        else:
            found |= {f"{name}/{deeper}": content for deeper, content in files(below).items()}
    return found


# The directory


def test_the_name_is_the_time_in_seconds(base: str, saved_model: Callable[[], str]) -> None:
    url = publish(Storage(), saved_model(), base)

    assert url == f"{base}/{NOW}"
    assert sorted(files(base)) == [f"{NOW}/{name}" for name in FILES]


def test_an_existing_export_is_not_replaced(base: str, saved_model: Callable[[], str]) -> None:
    Storage().write_bytes(f"{base}/{NOW}/saved_model.pb", b"of another")
    Storage().write_bytes(f"{base}/{NOW + 1}", b"a file")

    url = publish(Storage(), saved_model(), base)

    assert url == f"{base}/{NOW + 2}"
    assert Storage().read_bytes(f"{base}/{NOW}/saved_model.pb") == b"of another"


def test_publish_fails_after_ten_taken_names(base: str, saved_model: Callable[[], str]) -> None:
    for second in range(10):
        Storage().write_bytes(f"{base}/{NOW + second}/saved_model.pb", b"of another")

    with pytest.raises(RuntimeError, match=f"unique export directory name under {base} after 10 attempts"):
        publish(Storage(), saved_model(), base)

    assert len(Storage().list_dir(base)) == 10


def test_concurrent_exports_get_different_directories(store: str, saved_model: Callable[[], str]) -> None:
    others: list[str] = []

    def export_meanwhile(path: str) -> None:
        if not others:
            others.append("")
            others[0] = publish(Storage(), saved_model(), store)

    # The other export starts when this one has claimed its name but written no file.
    WatchedFileSystem.before = staticmethod(export_meanwhile)
    url = publish(Storage(), saved_model(), store)

    assert [url, *others] == [f"{store}/{NOW}", f"{store}/{NOW + 1}"]
    for each in (url, others[0]):
        assert sorted(files(each)) == FILES
        assert len(set(files(each).values())) == 1
    assert Storage().list_dir(store) == [str(NOW), str(NOW + 1)]


def test_an_export_with_a_graph_is_complete(store: str, saved_model: Callable[[], str]) -> None:
    found: list[list[str]] = []

    def load(path: str) -> None:
        for name in Storage().list_dir(store):
            if name.isdecimal() and Storage().exists(f"{store}/{name}/saved_model.pb"):
                found.append(sorted(files(f"{store}/{name}")))

    WatchedFileSystem.before = WatchedFileSystem.after = staticmethod(load)
    publish(Storage(), saved_model(), store)

    assert found == [FILES]


def test_a_claim_with_a_lost_response_is_recognized(
    store: str, saved_model: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Storage.create_bytes

    def answer_twice(self: Storage, url: str, data: bytes) -> None:
        create(self, url, data)
        create(self, url, data)

    monkeypatch.setattr(Storage, "create_bytes", answer_twice)

    assert publish(Storage(), saved_model(), store) == f"{store}/{NOW}"
    assert Storage().list_dir(store) == [str(NOW)]


@pytest.mark.parametrize("arrived", range(len(FILES)))
def test_a_failed_upload_leaves_no_files(store: str, saved_model: Callable[[], str], arrived: int) -> None:
    paths: list[str] = []

    def fail(path: str) -> None:
        if len(paths) == arrived:
            raise ConnectionError("the store went away")
        paths.append(path)

    WatchedFileSystem.before = staticmethod(fail)
    with pytest.raises(ConnectionError, match="the store went away"):
        publish(Storage(), saved_model(), store)

    assert len(paths) == arrived
    assert files(store) == {}


def test_an_error_of_the_clean_up_does_not_hide_the_first_error(
    store: str, saved_model: Callable[[], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise PermissionError("no deleting here")

    def fail(path: str) -> None:
        raise ConnectionError("the store went away")

    WatchedFileSystem.after = staticmethod(fail)
    monkeypatch.setattr(WatchedFileSystem, "rm", refuse)
    monkeypatch.setattr(WatchedFileSystem, "rm_file", refuse)

    with pytest.raises(ConnectionError, match="the store went away"):
        publish(Storage(), saved_model(), store)

    assert "Could not delete" in caplog.text


def test_deletion_removes_the_graph_first(
    base: str, saved_model: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = publish(Storage(), saved_model(), base)
    monkeypatch.setattr(Storage, "remove_dir", lambda storage, url: before.append(sorted(files(url))))
    before: list[list[str]] = []

    remove(Storage(), url)
    remove(Storage(), f"{base}/missing")
    monkeypatch.undo()
    remove(Storage(), url)

    assert before == [[name for name in FILES if name != "saved_model.pb"], []]
    assert files(base) == {}


def test_an_unfinished_export_has_a_name_that_loaders_ignore(base: str) -> None:
    with staging_dir(Storage(), base) as folder:
        assert not any(name.isdecimal() for name in Storage().list_dir(base))
        if Storage().local_path(base) is not None:
            assert Path(folder).parent == Path(base)

    assert Storage().list_dir(base) == []


# Receiver functions


def receiver_fn() -> Any:
    """Never called here."""


def test_receiver_functions_by_mode() -> None:
    given = {ModeKeys.PREDICT: receiver_fn, ModeKeys.TRAIN: receiver_fn, ModeKeys.EVAL: None}

    assert checked_receiver_fns(given) == {ModeKeys.PREDICT: receiver_fn, ModeKeys.TRAIN: receiver_fn}


@pytest.mark.parametrize("given", [{}, {ModeKeys.TRAIN: None}, {"test": receiver_fn}])
def test_receiver_functions_without_a_valid_mode_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"No valid modes for exporting found\. Got ") as raised:
        checked_receiver_fns(given)

    assert str(list(given)) in str(raised.value)


def test_an_unknown_mode_next_to_a_valid_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Got \['infer', 'predict'\]"):
        checked_receiver_fns({ModeKeys.PREDICT: receiver_fn, "predict": receiver_fn})


def test_receiver_functions_must_be_callable() -> None:
    with pytest.raises(TypeError, match="input_receiver_fn for mode 'eval' must be callable, got 3"):
        checked_receiver_fns({ModeKeys.EVAL: 3})
    with pytest.raises(TypeError, match="must be a dict of mode to function"):
        checked_receiver_fns(receiver_fn)


# Assets


def test_asset_sources_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.txt").write_text("one")
    Storage().write_bytes("memory://a7-6/far.txt", b"far")
    monkeypatch.chdir(tmp_path)

    assets = {"a": "words.txt", "b/./c": Path("words.txt"), b"d": b"words.txt", "e": "memory://a7-6/far.txt"}
    near = str(tmp_path / "words.txt")
    assert checked_assets(assets, Storage()) == {"a": near, "b/c": near, "d": near, "e": "memory://a7-6/far.txt"}
    assert checked_assets(None, Storage()) == {}


@pytest.mark.parametrize("source", ["missing.txt", ".", "memory://a7-6/missing", "memory://a7-6"])
def test_an_asset_source_must_be_a_file(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Storage().write_bytes("memory://a7-6/far.txt", b"far")

    with pytest.raises(FileNotFoundError, match=r"assets_extra\['a'\] must be a file") as raised:
        checked_assets({"a": source}, Storage())

    assert raised.value.filename == Storage().normalize(source)


@pytest.mark.parametrize("destination", ["", ".", "..", "../out", "a/../../out", "/etc/passwd"])
def test_an_asset_destination_must_be_below_assets_extra(tmp_path: Path, destination: str) -> None:
    (tmp_path / "words.txt").write_text("one")

    with pytest.raises(ValueError, match=r"must be a relative path of a file below assets\.extra") as raised:
        checked_assets({destination: str(tmp_path / "words.txt")}, Storage())

    assert repr(destination) in str(raised.value)


def test_assets_must_be_a_dict() -> None:
    with pytest.raises(TypeError, match="assets_extra must be a dict"):
        checked_assets(["words.txt"], Storage())
