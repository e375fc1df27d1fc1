"""What an export checks on the driver, and how a SavedModel appears in a directory that loaders watch."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ray_estimator import ModeKeys
from ray_estimator._storage import saved_model as saved_model_module
from ray_estimator._storage.saved_model import publish, remove, staging_dir
from ray_estimator._storage.storage import Storage
from ray_estimator._validation.exports import checked_assets, checked_receiver_fns

NOW = 1_700_000_000
FILES = ["assets/words.txt", "saved_model.pb", "variables/variables.data-00000-of-00001", "variables/variables.index"]


class Clock:
    """A clock that goes on only while somebody sleeps."""

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
    return clock


class WatchedFileSystem(MemoryFileSystem):
    """A store on which a test does something before and after each file arrives."""

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
    """The URL of an empty place on a watched store."""
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
    """Makes local SavedModels, as far as publishing looks at them."""

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


def test_a7_2_the_name_is_the_time_in_seconds(base: str, saved_model: Callable[[], str]) -> None:
    url = publish(Storage(), saved_model(), base)

    assert url == f"{base}/{NOW}"
    assert sorted(files(base)) == [f"{NOW}/{name}" for name in FILES]


def test_a7_2_a_name_that_is_taken_is_left_alone(base: str, saved_model: Callable[[], str]) -> None:
    Storage().write_bytes(f"{base}/{NOW}/saved_model.pb", b"of another")
    Storage().write_bytes(f"{base}/{NOW + 1}", b"a file")

    url = publish(Storage(), saved_model(), base)

    assert url == f"{base}/{NOW + 2}"
    assert Storage().read_bytes(f"{base}/{NOW}/saved_model.pb") == b"of another"


def test_a7_2_after_ten_taken_names_it_gives_up(base: str, saved_model: Callable[[], str]) -> None:
    for second in range(10):
        Storage().write_bytes(f"{base}/{NOW + second}/saved_model.pb", b"of another")

    with pytest.raises(RuntimeError, match=f"unique export directory name under {base} after 10 attempts"):
        publish(Storage(), saved_model(), base)

    assert len(Storage().list_dir(base)) == 10


def test_a7_2_two_exports_at_the_same_time_get_two_directories(store: str, saved_model: Callable[[], str]) -> None:
    others: list[str] = []

    def export_meanwhile(path: str) -> None:
        if not others:
            others.append("")
            others[0] = publish(Storage(), saved_model(), store)

    # The other one begins when this one has taken its name but not stored a file.
    WatchedFileSystem.before = staticmethod(export_meanwhile)
    url = publish(Storage(), saved_model(), store)

    assert [url, *others] == [f"{store}/{NOW}", f"{store}/{NOW + 1}"]
    for each in (url, others[0]):
        assert sorted(files(each)) == FILES
        assert len(set(files(each).values())) == 1
    assert Storage().list_dir(store) == [str(NOW), str(NOW + 1)]


def test_a7_2_whoever_finds_a_graph_on_a_store_finds_all_of_its_files(
    store: str, saved_model: Callable[[], str]
) -> None:
    found: list[list[str]] = []

    def load(path: str) -> None:
        for name in Storage().list_dir(store):
            if name.isdecimal() and Storage().exists(f"{store}/{name}/saved_model.pb"):
                found.append(sorted(files(f"{store}/{name}")))

    WatchedFileSystem.before = WatchedFileSystem.after = staticmethod(load)
    publish(Storage(), saved_model(), store)

    assert found == [FILES]


def test_a7_2_a_claim_whose_answer_was_lost_is_its_own(
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
def test_a7_2_an_upload_that_fails_leaves_nothing(store: str, saved_model: Callable[[], str], arrived: int) -> None:
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


def test_a7_2_a_store_that_does_not_let_clean_up_gives_the_first_error(
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

    assert "Could not remove" in caplog.text


def test_an_export_that_is_deleted_is_no_model_from_the_start(
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


def test_a7_2_what_is_being_written_has_no_name_that_loaders_look_at(base: str) -> None:
    with staging_dir(Storage(), base) as folder:
        assert not any(name.isdecimal() for name in Storage().list_dir(base))
        if Storage().local_path(base) is not None:
            assert Path(folder).parent == Path(base)

    assert Storage().list_dir(base) == []


# Receiver functions


def receiver_fn() -> Any:
    """Never called here."""


def test_a7_9_receiver_functions_by_mode() -> None:
    given = {ModeKeys.PREDICT: receiver_fn, ModeKeys.TRAIN: receiver_fn, ModeKeys.EVAL: None}

    assert checked_receiver_fns(given) == {ModeKeys.PREDICT: receiver_fn, ModeKeys.TRAIN: receiver_fn}


@pytest.mark.parametrize("given", [{}, {ModeKeys.TRAIN: None}, {"test": receiver_fn}])
def test_a7_9_without_a_valid_mode_there_is_nothing_to_export(given: Any) -> None:
    with pytest.raises(ValueError, match=r"No valid modes for exporting found\. Got ") as raised:
        checked_receiver_fns(given)

    assert str(list(given)) in str(raised.value)


def test_a7_9_an_unknown_mode_beside_a_valid_one_is_an_error_too() -> None:
    with pytest.raises(ValueError, match=r"Got \['infer', 'predict'\]"):
        checked_receiver_fns({ModeKeys.PREDICT: receiver_fn, "predict": receiver_fn})


def test_a7_9_receiver_functions_must_be_callable() -> None:
    with pytest.raises(TypeError, match="input_receiver_fn for mode 'eval' must be callable, got 3"):
        checked_receiver_fns({ModeKeys.EVAL: 3})
    with pytest.raises(TypeError, match="must be a dict of mode to function"):
        checked_receiver_fns(receiver_fn)


# Assets


def test_a7_6_sources_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.txt").write_text("one")
    Storage().write_bytes("memory://a7-6/far.txt", b"far")
    monkeypatch.chdir(tmp_path)

    assets = {"a": "words.txt", "b/./c": Path("words.txt"), b"d": b"words.txt", "e": "memory://a7-6/far.txt"}
    near = str(tmp_path / "words.txt")
    assert checked_assets(assets, Storage()) == {"a": near, "b/c": near, "d": near, "e": "memory://a7-6/far.txt"}
    assert checked_assets(None, Storage()) == {}


@pytest.mark.parametrize("source", ["missing.txt", ".", "memory://a7-6/missing", "memory://a7-6"])
def test_a7_6_a_source_that_is_no_file_is_an_error(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Storage().write_bytes("memory://a7-6/far.txt", b"far")

    with pytest.raises(FileNotFoundError, match=r"assets_extra\['a'\] must be a file") as raised:
        checked_assets({"a": source}, Storage())

    assert raised.value.filename == Storage().normalize(source)


@pytest.mark.parametrize("destination", ["", ".", "..", "../out", "a/../../out", "/etc/passwd"])
def test_a7_6_a_destination_stays_below_assets_extra(tmp_path: Path, destination: str) -> None:
    (tmp_path / "words.txt").write_text("one")

    with pytest.raises(ValueError, match=r"must be a relative path of a file below assets\.extra") as raised:
        checked_assets({destination: str(tmp_path / "words.txt")}, Storage())

    assert repr(destination) in str(raised.value)


def test_a7_6_assets_are_a_dict() -> None:
    with pytest.raises(TypeError, match="assets_extra must be a dict"):
        checked_assets(["words.txt"], Storage())
