"""The checkpoint store: what readers see at every moment, and what TensorFlow's own reader and Saver say to it."""

from __future__ import annotations

import logging
import os
import pickle
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.python.training import saver as tf_saver

from ray_estimator._checkpoint_state import CheckpointState
from ray_estimator._checkpoints import Checkpoint, CheckpointStore, Published, Retention
from ray_estimator._storage import Storage
from ray_estimator.errors import CheckpointNotFoundError

KEEP_ALL = Retention(newest=None)
SUFFIXES = (".data-00000-of-00002", ".data-00001-of-00002", ".index", ".meta")


@pytest.fixture(params=["local", "memory"])
def model_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A model_dir that does not exist yet."""
    if request.param == "memory":
        url = f"memory://{uuid.uuid4().hex}"
        yield url
        Storage().remove_dir(url)
    else:
        yield str(tmp_path / "run")


@pytest.fixture
def local_dir(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def store_at(
    model_dir: str, storage: Storage | None = None, clock: Callable[[], float] = lambda: 1e9
) -> CheckpointStore:
    return CheckpointStore(model_dir, storage or Storage(), clock)


def write_files(prefix: str, content: str = "", suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Files such as a Saver leaves; each says which checkpoint it belongs to."""
    os.makedirs(os.path.dirname(prefix), exist_ok=True)
    for suffix in suffixes:
        Path(prefix + suffix).write_text(content or os.path.basename(prefix))


def save(
    store: CheckpointStore, step: int, retention: Retention = KEEP_ALL, content: str = "", name: str = "model.ckpt"
) -> Checkpoint:
    with store.staging_dir() as staging:
        prefix = os.path.join(staging, f"{name}-{step}")
        write_files(prefix, content)
        return store.publish(prefix, step, retention)


def save_nothing_whole(store: CheckpointStore, staging: str) -> None:
    write_files(os.path.join(staging, "model.ckpt-1"), suffixes=(".index",))
    store.publish(os.path.join(staging, "model.ckpt-1"), 1, KEEP_ALL)


def steps(checkpoints: list[Checkpoint]) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints]


def names_in(model_dir: str) -> list[str]:
    return Storage().list_dir(model_dir)


def contents_of(store: CheckpointStore, checkpoint: Checkpoint, tmp_path: Path) -> set[str]:
    """What the files of a checkpoint hold: a single text if they belong together."""
    prefix = store.fetch(checkpoint, str(tmp_path / uuid.uuid4().hex))
    return {Path(prefix + suffix).read_text() for suffix in SUFFIXES}


# Publishing and reading.


def test_nothing_is_published_in_a_directory_that_is_not_there(model_dir: str) -> None:
    store = store_at(model_dir)
    assert store.latest() is None
    assert store.published() == []


def test_what_was_published_is_the_latest_and_can_be_fetched(model_dir: str, tmp_path: Path) -> None:
    store = store_at(model_dir)
    save(store, 0)
    saved = save(store, 10)
    assert store.latest() == saved == Checkpoint(Storage().join(model_dir, "model.ckpt-10"), 10)
    assert steps(store.published()) == [0, 10]
    assert contents_of(store, saved, tmp_path) == {"model.ckpt-10"}
    assert store.find(saved.path) == saved


def test_a_local_checkpoint_is_read_where_it_lies(local_dir: str, tmp_path: Path) -> None:
    store = store_at(f"file://{local_dir}/")
    saved = save(store, 10)
    assert store.fetch(saved, str(tmp_path / "unused")) == f"{local_dir}/model.ckpt-10"
    assert not (tmp_path / "unused").exists()


def test_publish_keeps_the_base_name(model_dir: str) -> None:
    store = store_at(model_dir)
    assert save(store, 3, name="best").path.endswith("/best-3")
    assert "best-3.index" in names_in(model_dir)


def test_publish_leaves_nothing_but_the_checkpoint_and_the_state_file(model_dir: str) -> None:
    save(store_at(model_dir), 10)
    assert names_in(model_dir) == ["checkpoint", *(f"model.ckpt-10{suffix}" for suffix in SUFFIXES)]


def test_local_files_are_renamed_into_place(local_dir: str) -> None:
    store = store_at(local_dir)
    with store.staging_dir() as staging:
        write_files(f"{staging}/model.ckpt-1")
        before = os.stat(f"{staging}/model.ckpt-1.index").st_ino
        store.publish(f"{staging}/model.ckpt-1", 1, KEEP_ALL)
    assert os.stat(f"{local_dir}/model.ckpt-1.index").st_ino == before


def test_publish_refuses_files_that_are_not_whole(model_dir: str, tmp_path: Path) -> None:
    store = store_at(model_dir)
    write_files(str(tmp_path / "model.ckpt-1"), suffixes=(".index", ".data-00001-of-00002"))
    with pytest.raises(CheckpointNotFoundError, match=r"misses model\.ckpt-1\.data-00000-of-00002"):
        store.publish(str(tmp_path / "model.ckpt-1"), 1, KEEP_ALL)
    assert names_in(model_dir) == []


def test_publish_refuses_a_name_of_another_step(model_dir: str, tmp_path: Path) -> None:
    write_files(str(tmp_path / "model.ckpt-1"))
    with pytest.raises(ValueError, match="ends with -2"):
        store_at(model_dir).publish(str(tmp_path / "model.ckpt-1"), 2, KEEP_ALL)


def test_publish_refuses_files_that_lie_in_model_dir_and_leaves_them(local_dir: str) -> None:
    write_files(f"{local_dir}/model.ckpt-1")
    with pytest.raises(ValueError, match="staging_dir"):
        store_at(local_dir).publish(f"{local_dir}/model.ckpt-1", 1, KEEP_ALL)
    assert len(names_in(local_dir)) == len(SUFFIXES)


def test_a_step_is_published_again_with_new_content(model_dir: str, tmp_path: Path) -> None:
    store = store_at(model_dir)
    save(store, 5)
    save(store, 10, content="first")
    again = save(store, 10, content="second")
    assert steps(store.published()) == [5, 10]
    assert contents_of(store, again, tmp_path) == {"second"}
    assert not [name for name in names_in(model_dir) if "replacement" in name]


def test_debris_with_more_shards_does_not_spoil_a_checkpoint(model_dir: str, tmp_path: Path) -> None:
    store = store_at(model_dir)
    storage = Storage()
    storage.write_bytes(storage.join(model_dir, "model.ckpt-1.data-00007-of-00008"), b"debris")
    saved = save(store, 1)
    assert store.latest() == saved
    assert "model.ckpt-1.data-00007-of-00008" not in names_in(model_dir)


def test_write_text_makes_a_file_of_model_dir(model_dir: str) -> None:
    storage = Storage()
    store_at(model_dir).write_text("graph.pbtxt", "node { }")
    assert storage.read_bytes(storage.join(model_dir, "graph.pbtxt")) == b"node { }"


def test_the_staging_directory_goes_even_after_an_error(model_dir: str) -> None:
    with pytest.raises(CheckpointNotFoundError), store_at(model_dir).staging_dir() as staging:
        save_nothing_whole(store_at(model_dir), staging)
    assert not os.path.exists(staging)
    assert names_in(model_dir) == []


def test_a_store_and_its_checkpoints_pickle(local_dir: str) -> None:
    store = CheckpointStore(local_dir, Storage())
    saved = save(store, 1)
    assert pickle.loads(pickle.dumps(store)).latest() == pickle.loads(pickle.dumps(saved)) == saved


@pytest.mark.parametrize(
    ("path", "step"),
    [("/a/model.ckpt-100", 100), ("s3://b-2/model.ckpt", 0), ("a-b-007", 7), ("/run-5/model", 0), ("model-5.ckpt", 0)],
)
def test_the_step_is_the_number_at_the_end(path: str, step: int) -> None:
    assert Checkpoint.at(path) == Checkpoint(path, step)


# Damage.


def test_a_missing_shard_falls_back_to_the_one_before(model_dir: str, caplog: pytest.LogCaptureFixture) -> None:
    store = store_at(model_dir)
    before = save(store, 10)
    newest = save(store, 20)
    Storage().remove(newest.path + ".data-00001-of-00002")
    with caplog.at_level(logging.WARNING):
        assert store.latest() == before
    assert "model.ckpt-20.data-00001-of-00002" in caplog.text
    assert f"Falling back to {before.path}" in caplog.text


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00002"])
def test_any_missing_file_but_the_meta_graph_is_damage(model_dir: str, suffix: str) -> None:
    store = store_at(model_dir)
    before = save(store, 10)
    newest = save(store, 20)
    Storage().remove(newest.path + ".meta")
    assert store.latest() == newest
    Storage().remove(newest.path + suffix)
    assert store.latest() == before
    with pytest.raises(CheckpointNotFoundError):
        store.fetch(newest, "unused")


def test_nothing_whole_is_said_and_is_none(model_dir: str, caplog: pytest.LogCaptureFixture) -> None:
    store = store_at(model_dir)
    Storage().remove(save(store, 10).path + ".index")
    assert store.latest() is None
    assert "no whole one to fall back to" in caplog.text


def test_files_that_the_state_file_does_not_name_do_not_count(local_dir: str) -> None:
    store = store_at(local_dir)
    published = save(store, 10)
    write_files(f"{local_dir}/model.ckpt-99")
    assert store.latest() == published
    assert store.find(f"{local_dir}/model.ckpt-99").step == 99


@pytest.mark.parametrize("content", [b"", b"\n", b'model_checkpoint_path: "model.ck', b"\xff\xfe", b"step: 3"])
def test_a_damaged_state_file_leaves_the_newest_whole_checkpoint(
    model_dir: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store, storage = store_at(model_dir), Storage()
    save(store, 9)
    newest_whole = save(store, 10)
    storage.remove(save(store, 20).path + ".data-00000-of-00002")
    storage.write_bytes(storage.join(model_dir, "checkpoint"), content)
    assert store.latest() == newest_whole
    assert "is damaged" in caplog.text
    assert newest_whole.path in caplog.text


def test_publishing_over_a_damaged_state_file_deletes_no_older_checkpoint(model_dir: str) -> None:
    store, storage = store_at(model_dir), Storage()
    for step in (1, 2, 3):
        save(store, step)
    storage.write_bytes(storage.join(model_dir, "checkpoint"), b"")
    save(store, 4, Retention(newest=2))
    assert steps(store.published()) == [3, 4]
    assert store.find("model.ckpt-1").step == 1


def test_an_empty_state_file_alone_is_nothing_published(model_dir: str, caplog: pytest.LogCaptureFixture) -> None:
    Storage().write_bytes(Storage().join(model_dir, "checkpoint"), b"")
    assert store_at(model_dir).latest() is None
    assert "is damaged" in caplog.text


class _UnreadableStorage(Storage):
    def read_bytes(self, url: str) -> bytes:
        raise PermissionError(url)


def test_a_state_file_that_cannot_be_read_is_an_error_and_not_an_empty_store(local_dir: str) -> None:
    save(store_at(local_dir), 1)
    with pytest.raises(PermissionError):
        store_at(local_dir, _UnreadableStorage()).latest()


# The fence.


class _Fenced(Exception):
    """Another writer owns model_dir."""


@pytest.mark.parametrize("calls", range(3))
def test_the_fence_stops_a_publication_before_the_first_write_and_around_the_state_file(
    model_dir: str, calls: int
) -> None:
    save(store_at(model_dir), 1)
    before = names_in(model_dir)
    seen = []

    def fence() -> None:
        seen.append(steps(store_at(model_dir).published()))
        if len(seen) > calls:
            raise _Fenced

    with store_at(model_dir).staging_dir() as staging:
        write_files(f"{staging}/model.ckpt-2")
        with pytest.raises(_Fenced):
            store_at(model_dir).publish(f"{staging}/model.ckpt-2", 2, Retention(newest=1), fence=fence)
    assert seen == [[1], [1], [2]][: calls + 1]
    if calls == 0:
        assert names_in(model_dir) == before
    assert store_at(model_dir).find("model.ckpt-1").step == 1


# Every point at which publishing may stop.


class _Stop(BaseException):
    """The process dies here."""


class _StoppingStorage(Storage):
    """Stops before the given change of the store, counted from 0, and says no more after."""

    def __init__(self, changes: int) -> None:
        super().__init__()
        object.__setattr__(self, "changes_left", changes)

    def _change(self) -> None:
        left: int = self.changes_left  # type: ignore[attr-defined]
        if left == 0:
            raise _Stop
        object.__setattr__(self, "changes_left", left - 1)

    def write_bytes(self, url: str, data: bytes) -> None:
        self._change()
        super().write_bytes(url, data)

    def put_file(self, local_path: str, url: str, *, move: bool = False) -> None:
        self._change()
        super().put_file(local_path, url, move=move)

    def remove(self, url: str) -> None:
        self._change()
        super().remove(url)


def publish_until_it_stops(
    model_dir: str, staging: Path, step: int, retention: Retention, content: str
) -> Iterator[int]:
    """Publish with a storage that stops at the first change, then at the second, until it does not stop."""
    changes = 0
    while True:
        prefix = str(staging / uuid.uuid4().hex / f"model.ckpt-{step}")
        write_files(prefix, content)
        try:
            store_at(model_dir, _StoppingStorage(changes)).publish(prefix, step, retention)
        except _Stop:
            yield changes
            changes += 1
        else:
            return


@pytest.fixture
def rewind(model_dir: str, tmp_path: Path) -> Callable[[], None]:
    """Puts model_dir back to how it was at the time of the first call."""
    kept = tmp_path / "kept"

    def put_back() -> None:
        if not kept.exists():
            Storage().get_dir(model_dir, str(kept))
        Storage().remove_dir(model_dir)
        Storage().put_dir(str(kept), model_dir)

    return put_back


def test_wherever_publishing_stops_the_previous_checkpoint_or_the_new_one_is_the_latest(
    model_dir: str, tmp_path: Path, rewind: Callable[[], None]
) -> None:
    store, retention = store_at(model_dir), Retention(newest=2)
    for step in (10, 20):
        save(store, step)
    rewind()
    seen = []
    for _ in publish_until_it_stops(model_dir, tmp_path, 30, retention, "new"):
        latest = store.latest()
        assert latest is not None
        seen.append(latest.step)
        assert contents_of(store, latest, tmp_path) == {"new" if latest.step == 30 else "model.ckpt-20"}
        # Unpublished first, deleted after: what is published is whole at every moment.
        assert all(store.find(checkpoint.path) for checkpoint in store.published())

        again = save(store, 30, retention, content="again")
        assert store.latest() == again
        assert contents_of(store, again, tmp_path) == {"again"}
        assert steps(store.published()) == [20, 30]
        rewind()
    # Four files and the state file, then the four files of the oldest.
    assert seen == [20] * 5 + [30] * 4


@pytest.mark.parametrize("others", [[], [5]])
def test_wherever_replacing_a_checkpoint_stops_one_of_the_two_is_whole(
    model_dir: str, tmp_path: Path, rewind: Callable[[], None], others: list[int]
) -> None:
    store = store_at(model_dir)
    for step in others:
        save(store, step)
    save(store, 10, content="old")
    rewind()
    seen = []
    for _ in publish_until_it_stops(model_dir, tmp_path, 10, KEEP_ALL, "new"):
        latest = store.latest()
        assert latest is not None
        assert latest.step == 10
        (content,) = contents_of(store, latest, tmp_path)
        seen.append(content)

        again = save(store, 10, content="again")
        assert contents_of(store, again, tmp_path) == {"again"}
        assert steps(store.published()) == [*others, 10]
        assert names_in(model_dir).count("model.ckpt-10.index") == 1
        rewind()
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"old", "new"}


class _NoDeleteStorage(Storage):
    def remove(self, url: str) -> None:
        raise PermissionError("may not delete")


def test_a_delete_that_fails_is_said_and_does_not_fail_the_save(
    model_dir: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_at(model_dir, _NoDeleteStorage())
    save(store, 1)
    save(store, 2, Retention(newest=1))
    assert steps(store.published()) == [2]
    assert "model.ckpt-1" in caplog.text
    assert "may not delete" in caplog.text


def test_pruning_deletes_the_index_before_the_data(model_dir: str) -> None:
    removed: list[str] = []

    class RecordingStorage(Storage):
        def remove(self, url: str) -> None:
            removed.append(url.rpartition("/")[2])
            super().remove(url)

    store = store_at(model_dir, RecordingStorage())
    save(store, 1)
    save(store, 2, Retention(newest=1))
    assert removed[0] == "model.ckpt-1.index"
    assert sorted(removed) == [f"model.ckpt-1{suffix}" for suffix in SUFFIXES]


# What a caller names.


def test_find_looks_from_the_current_directory_first_then_in_model_dir(
    local_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = store_at(local_dir)
    save(store, 1)
    assert store.find("model.ckpt-1").path == f"{local_dir}/model.ckpt-1"
    write_files(str(tmp_path / "model.ckpt-1"))
    assert store.find("model.ckpt-1").path == str(tmp_path / "model.ckpt-1")
    assert store.find("run/model.ckpt-1").path == f"{local_dir}/model.ckpt-1"


def test_find_raises_for_a_checkpoint_that_is_not_there_and_says_what_is(model_dir: str) -> None:
    store = store_at(model_dir)
    save(store, 1)
    with pytest.raises(CheckpointNotFoundError, match=r"no files .*model\.ckpt-2.* Published in .*: model\.ckpt-1\."):
        store.find("model.ckpt-2")
    with pytest.raises(CheckpointNotFoundError):
        store.find("model.ckpt")


def test_find_never_falls_back_from_a_damaged_checkpoint(
    local_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = store_at(local_dir)
    save(store, 1)
    write_files(str(tmp_path / "model.ckpt-1"), suffixes=(".index",))
    with pytest.raises(CheckpointNotFoundError, match=r"misses model\.ckpt-1\.data-00000-of-00001"):
        store.find("model.ckpt-1")


def test_find_says_that_a_suffix_is_no_part_of_the_name(model_dir: str) -> None:
    saved = save(store_at(model_dir), 1)
    with pytest.raises(CheckpointNotFoundError, match="Leave the suffix out"):
        store_at(model_dir).find(saved.path + ".index")


def test_find_reads_other_directories(model_dir: str, tmp_path: Path) -> None:
    save(store_at(model_dir), 1)
    write_files(str(tmp_path / "pretrained" / "bert.ckpt"))
    found = store_at(model_dir).find(f"file://{tmp_path}/pretrained/bert.ckpt")
    assert found == Checkpoint(str(tmp_path / "pretrained" / "bert.ckpt"), 0)
    assert contents_of(store_at(model_dir), found, tmp_path) == {"bert.ckpt"}


# The state file, against TensorFlow's own reader and writer.

ODD_NAMES = ["model.ckpt-1", "sp ace-2", 'quo"te\\-3', "ünïcødé-4", "tab\tnew\nline-5", "single'-6"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_tensorflow_reads_what_we_write(tmp_path: Path, name: str) -> None:
    state = CheckpointState(("first-0", name), (1.5, 1759000000.123456), 1e16)
    (tmp_path / "checkpoint").write_text(state.to_text())
    read = tf.train.get_checkpoint_state(str(tmp_path))
    assert read.model_checkpoint_path == f"{tmp_path}/{name}"
    assert list(read.all_model_checkpoint_paths) == [f"{tmp_path}/first-0", f"{tmp_path}/{name}"]
    assert list(read.all_model_checkpoint_timestamps) == [1.5, 1759000000.123456]
    assert read.last_preserved_timestamp == 1e16


@pytest.mark.parametrize("name", ODD_NAMES)
def test_we_read_what_tensorflow_writes(tmp_path: Path, name: str) -> None:
    tf.compat.v1.train.update_checkpoint_state(
        str(tmp_path),
        name,
        ["first-0", name],
        all_model_checkpoint_timestamps=[1.5, 1759000000.123456],
        last_preserved_timestamp=12.25,
    )
    text = (tmp_path / "checkpoint").read_text()
    assert CheckpointState.from_text(text) == CheckpointState(("first-0", name), (1.5, 1759000000.123456), 12.25)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_we_read_what_we_write(name: str) -> None:
    state = CheckpointState(("first-0", name), (1.5, 2.5), None)
    assert CheckpointState.from_text(state.to_text()) == state


def test_octal_and_hexadecimal_escapes_are_bytes_of_utf_8() -> None:
    state = CheckpointState.from_text(r"""model_checkpoint_path: 'm\303\274\x2d1' # the current one""")
    assert state.paths == ("mü-1",)


def test_timestamps_that_do_not_match_the_paths_are_unknown() -> None:
    text = 'model_checkpoint_path: "a"\nall_model_checkpoint_paths: "a"\nall_model_checkpoint_timestamps: 1\n'
    assert CheckpointState.from_text(text).timestamps == (1.0,)
    assert CheckpointState.from_text(text + "all_model_checkpoint_timestamps: 2\n").timestamps == (0.0,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment",
        'all_model_checkpoint_paths: "a"',
        'model_checkpoint_path: ""',
        'model_checkpoint_path "a"',
        'model_checkpoint_path: "a',
        'model_checkpoint_path: "a"\nlast_preserved_timestamp: soon',
        'model_checkpoint_path: "a" }',
    ],
)
def test_what_is_no_state_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        CheckpointState.from_text(text)


def test_tensorflow_finds_the_latest_checkpoint(local_dir: str, tmp_path: Path) -> None:
    store = store_at(local_dir)
    save(store, 1)
    save(store, 2)
    assert tf.train.latest_checkpoint(local_dir) == f"{local_dir}/model.ckpt-2"
    shutil.move(local_dir, tmp_path / "elsewhere")
    assert tf.train.latest_checkpoint(str(tmp_path / "elsewhere")) == f"{tmp_path}/elsewhere/model.ckpt-2"
    assert store_at(str(tmp_path / "elsewhere")).latest() == Checkpoint(f"{tmp_path}/elsewhere/model.ckpt-2", 2)


@pytest.mark.parametrize("absolute", [True, False])
def test_checkpoints_that_tensorflow_listed_are_read_and_pruned(local_dir: str, absolute: bool) -> None:
    base = f"{local_dir}/" if absolute else ""
    for step in (1, 2, 3):
        write_files(f"{local_dir}/model.ckpt-{step}")
    prefixes = [f"{base}model.ckpt-{step}" for step in (1, 2, 3)]
    tf.compat.v1.train.update_checkpoint_state(local_dir, prefixes[-1], prefixes)
    store = store_at(local_dir)
    assert store.latest() == Checkpoint(f"{local_dir}/model.ckpt-3", 3)
    save(store, 4, Retention(newest=2, every_n_hours=1))
    assert steps(store.published()) == [3, 4]
    assert local_dir not in Path(local_dir, "checkpoint").read_text()
    assert not [name for name in names_in(local_dir) if name.startswith(("model.ckpt-1.", "model.ckpt-2."))]


def test_a_listed_checkpoint_of_another_directory_is_read_and_never_deleted(local_dir: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other" / "model.ckpt-1")
    write_files(other)
    os.makedirs(local_dir)
    tf.compat.v1.train.update_checkpoint_state(local_dir, other)
    store = store_at(local_dir)
    assert store.latest() == Checkpoint(other, 1)
    save(store, 2, Retention(newest=1))
    assert steps(store.published()) == [2]
    assert store.find(other).step == 1


def test_a_state_file_edited_to_go_back_makes_an_older_checkpoint_the_latest(local_dir: str) -> None:
    store = store_at(local_dir)
    for step in (1, 2, 3):
        save(store, step)
    state_file = Path(local_dir, "checkpoint")
    state_file.write_text(state_file.read_text().replace('t_path: "model.ckpt-3"', 't_path: "model.ckpt-1"', 1))
    assert tf.train.latest_checkpoint(local_dir) == f"{local_dir}/model.ckpt-1"
    assert store.latest() == Checkpoint(f"{local_dir}/model.ckpt-1", 1)
    save(store, 2, content="again")
    assert steps(store.published()) == [3, 1, 2]


# Retention.


class _Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    # TensorFlow's Saver reads `time.time()` and nothing else of the module.
    time = __call__


def random_intervals(seed: int, longest: float) -> list[float]:
    draw = random.Random(seed)
    return [draw.choice([60.0, 600.0, 1800.0, 3600.0, draw.uniform(1, longest)]) for _ in range(30)]


INTERVALS = {
    "every ten minutes": [600.0] * 40,
    "every hour": [3600.0] * 20,
    "every three hours": [3 * 3600.0] * 12,
    **{f"random {seed}": random_intervals(seed, 5400) for seed in range(4)},
}


@pytest.mark.parametrize("intervals", INTERVALS.values(), ids=INTERVALS.keys())
@pytest.mark.parametrize(("newest", "every_n_hours"), [(3, 1.0), (1, 1.0), (2, 2.5), (5, 10000.0)])
def test_keeps_the_files_that_tensorflows_saver_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intervals: list[float], newest: int, every_n_hours: float
) -> None:
    clock = _Clock()
    monkeypatch.setattr(tf_saver, "time", clock)
    store = store_at(str(tmp_path / "ours"), clock=clock)
    retention = Retention(newest, every_n_hours)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        session.run(tf.compat.v1.get_variable("v", initializer=1.0, use_resource=True).initializer)
        saver = tf.compat.v1.train.Saver(max_to_keep=newest, keep_checkpoint_every_n_hours=every_n_hours)
        for step, interval in enumerate(intervals):
            saver.save(session, str(tmp_path / "theirs" / "model.ckpt"), global_step=step, write_meta_graph=False)
            save(store, step, retention)
            clock.now += interval
    assert steps(store.published()) == [Checkpoint.at(path).step for path in saver.last_checkpoints]
    assert index_files(tmp_path / "ours") == index_files(tmp_path / "theirs")


def index_files(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*.index")}


@pytest.mark.parametrize("newest", [None, 0])
def test_without_a_limit_every_checkpoint_stays_published(model_dir: str, newest: int | None) -> None:
    store = store_at(model_dir)
    for step in range(8):
        save(store, step, Retention(newest, every_n_hours=1))
    assert steps(store.published()) == list(range(8))


def test_a_lower_limit_takes_effect_at_the_next_save(model_dir: str) -> None:
    store = store_at(model_dir)
    for step in range(5):
        save(store, step, Retention(5))
    save(store, 5, Retention(2))
    assert steps(store.published()) == [4, 5]
    assert sorted(name for name in names_in(model_dir) if name.endswith(".index")) == [
        "model.ckpt-4.index",
        "model.ckpt-5.index",
    ]


def test_hours_go_on_counting_after_a_restart(local_dir: str) -> None:
    clock = _Clock()
    for step in range(9):
        # Each save comes from a new process, 20 minutes after the last.
        save(store_at(local_dir, clock=clock), step, Retention(1, every_n_hours=1))
        clock.now += 1200
    assert index_files(Path(local_dir)) == {f"model.ckpt-{step}.index" for step in (4, 7, 8)}


def published_at(*hours: float) -> list[Published]:
    return [Published(Checkpoint(f"model.ckpt-{i}", i), hour * 3600) for i, hour in enumerate(hours)]


def test_the_first_decision_starts_to_count_at_the_newest_checkpoint() -> None:
    published = published_at(1, 5, 9)
    pruning = Retention(newest=1, every_n_hours=1).prune(published, last_preserved_timestamp=None)
    assert pruning.delete == tuple(published[:2])
    assert pruning.last_preserved_timestamp == 9 * 3600


def test_a_decision_says_what_stays_what_is_preserved_and_what_goes() -> None:
    published = published_at(0.9, 1.0, 1.1, 1.9, 2.1, 2.2)
    pruning = Retention(newest=1, every_n_hours=1).prune(published, last_preserved_timestamp=0.0)
    assert pruning.keep == (published[5],)
    assert pruning.preserve == (published[2], published[4])
    assert pruning.delete == (published[0], published[1], published[3])
    assert pruning.last_preserved_timestamp == 2 * 3600


def test_no_published_checkpoints_is_no_decision() -> None:
    pruning = Retention(newest=1, every_n_hours=1).prune([], None)
    assert (pruning.keep, pruning.preserve, pruning.delete, pruning.last_preserved_timestamp) == ((), (), (), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"newest": -1}, "keep_checkpoint_max"), ({"every_n_hours": 0}, "keep_checkpoint_every_n_hours")],
)
def test_senseless_retention_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retention(**arguments)
