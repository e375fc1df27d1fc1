"""Checkpoints on every store: publication, lookup, damage."""

from __future__ import annotations

import json
import logging
import os
import socket
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from support.saves import KEEP_ALL, MANIFEST, SUFFIXES, Place, contents_of, read_files, save, steps, write_files

from ray_estimator._checkpoints.retention import Checkpoint, Retention
from ray_estimator._checkpoints.store import CheckpointStore
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import CheckpointDamagedError, CheckpointNotFoundError

# Publishing and reading.


def test_a_missing_directory_has_no_checkpoints(place: Place) -> None:
    store = place.store()
    assert store.latest() is None
    assert store.published() == []


def test_a_published_checkpoint_is_the_latest_and_can_be_fetched(place: Place, tmp_path: Path) -> None:
    store = place.store()
    save(store, 0)
    saved = save(store, 10)
    assert store.latest() == saved
    assert (saved.path, saved.step) == (place.storage.normalize(place.file("model.ckpt-10")), 10)
    assert steps(store.published()) == [0, 10]
    assert contents_of(store, saved, tmp_path) == {"model.ckpt-10"}
    assert store.find(saved.path) == saved


def test_publish_keeps_the_base_name(place: Place) -> None:
    store = place.store()
    assert save(store, 3, name="best").path.endswith("/best-3")
    assert "best-3.index" in place.names()


def test_publish_leaves_only_the_checkpoint_and_the_state_file(place: Place) -> None:
    save(place.store(), 10)
    assert place.names() == ["checkpoint", *sorted(f"model.ckpt-10{suffix}" for suffix in (*SUFFIXES, MANIFEST))]


def test_publish_refuses_an_incomplete_checkpoint(place: Place, tmp_path: Path) -> None:
    store = place.store()
    write_files(str(tmp_path / "model.ckpt-1"), suffixes=(".index", ".data-00001-of-00002"))
    with pytest.raises(CheckpointNotFoundError, match=r"model\.ckpt-1\.data-00000-of-00002 is missing"):
        store.publish(str(tmp_path / "model.ckpt-1"), 1, KEEP_ALL)
    assert place.names() == []


def test_publish_refuses_a_prefix_with_a_different_step(place: Place, tmp_path: Path) -> None:
    write_files(str(tmp_path / "model.ckpt-1"))
    with pytest.raises(ValueError, match="ends with -2"):
        place.store().publish(str(tmp_path / "model.ckpt-1"), 2, KEEP_ALL)


def test_a_step_can_be_published_again_with_new_content(place: Place, tmp_path: Path) -> None:
    store = place.store()
    save(store, 5)
    save(store, 10, content="first")
    again = save(store, 10, content="second")
    assert steps(store.published()) == [5, 10]
    assert contents_of(store, again, tmp_path) == {"second"}
    assert not [name for name in place.names() if "replacement" in name]


def test_leftover_shards_do_not_damage_a_checkpoint(place: Place, tmp_path: Path) -> None:
    store = place.store()
    storage = place.storage
    storage.write_bytes(place.file("model.ckpt-1.data-00007-of-00008"), b"debris")
    saved = save(store, 1)
    assert store.latest() == saved
    assert "model.ckpt-1.data-00007-of-00008" not in place.names()


def test_write_text_creates_a_file_in_model_dir(place: Place) -> None:
    storage = place.storage
    place.store().write_text("graph.pbtxt", "node { }")
    assert storage.read_bytes(place.file("graph.pbtxt")) == b"node { }"


def test_the_staging_directory_is_deleted_after_an_error(place: Place) -> None:
    with pytest.raises(OSError, match="disk is full"), place.store().staging_dir() as staging:
        raise OSError("The disk is full")
    assert not os.path.exists(staging)
    assert place.names() == []


# Damage.


def test_a_missing_shard_falls_back_to_the_previous_checkpoint(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    store = place.store()
    before = save(store, 10)
    newest = save(store, 20)
    place.storage.remove(newest.path + ".data-00001-of-00002")
    with caplog.at_level(logging.WARNING):
        assert store.latest() == before
    assert "model.ckpt-20.data-00001-of-00002" in caplog.text
    assert f"Falling back to {before.path}" in caplog.text


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00002"])
def test_any_missing_file_except_the_meta_graph_is_damage(place: Place, suffix: str) -> None:
    store = place.store()
    before = save(store, 10)
    newest = save(store, 20)
    place.storage.remove(newest.path + ".meta")
    assert store.latest() == newest
    place.storage.remove(newest.path + suffix)
    assert store.latest() == before
    with pytest.raises(CheckpointNotFoundError):
        store.fetch(newest, "unused")


def test_without_an_intact_checkpoint_there_is_no_latest_and_a_warning(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    store = place.store()
    place.storage.remove(save(store, 10).path + ".index")
    assert store.latest() is None
    assert "no intact checkpoint to fall back to" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\n", b'model_checkpoint_path: "model.ck', b"\xff\xfe", b"step: 3"])
def test_with_a_damaged_state_file_the_newest_intact_checkpoint_is_used(
    place: Place, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store, storage = place.store(), place.storage
    save(store, 9)
    newest_whole = save(store, 10)
    storage.remove(save(store, 20).path + ".data-00000-of-00002")
    storage.write_bytes(place.file("checkpoint"), content)
    assert store.latest() == newest_whole
    assert "is damaged" in caplog.text
    assert newest_whole.path in caplog.text


def test_publishing_over_a_damaged_state_file_deletes_no_older_checkpoint(place: Place) -> None:
    store, storage = place.store(), place.storage
    for step in (1, 2, 3):
        save(store, step)
    storage.write_bytes(place.file("checkpoint"), b"")
    save(store, 4, Retention(newest=2))
    assert steps(store.published()) == [3, 4]
    assert store.find("model.ckpt-1").step == 1


def test_an_empty_state_file_without_checkpoints_means_none_are_published(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.storage.write_bytes(place.file("checkpoint"), b"")
    assert place.store().latest() is None
    assert "is damaged" in caplog.text


# The manifest.


def test_the_manifest_records_the_files_and_the_writer(place: Place, tmp_path: Path) -> None:
    write_files(str(tmp_path / "model.ckpt-7"))
    store = CheckpointStore(place.url, place.storage, attempt="2.1")
    saved = store.publish(str(tmp_path / "model.ckpt-7"), 7, KEEP_ALL)
    content = json.loads(place.storage.read_bytes(saved.path + MANIFEST))
    expected = {suffix: {"size": 12, "crc32": f"{zlib.crc32(b'model.ckpt-7'):08x}"} for suffix in SUFFIXES}
    writer = f"{socket.gethostname()}:{os.getpid()}"
    assert content == {"format": 1, "step": 7, "writer": writer, "attempt": "2.1", "files": expected}


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-1],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"!",
    "flipped": flipped,
}


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".index", "truncated"),
        (".index", "flipped"),
        (".data-00001-of-00002", "empty"),
        (".data-00001-of-00002", "flipped"),
        (".meta", "longer"),
        (MANIFEST, "empty"),
        (MANIFEST, "flipped"),
    ],
)
def test_a_checkpoint_with_damaged_bytes_is_not_used(
    place: Place, tmp_path: Path, suffix: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = place.store()
    before, newest = save(store, 10), save(store, 20)
    url = newest.path + suffix
    place.storage.write_bytes(url, DAMAGE[damage](place.storage.read_bytes(url)))
    prefix = store.with_newest(lambda checkpoint: store.fetch(required(checkpoint), str(tmp_path / "copy")))
    assert read_files(prefix) == {"model.ckpt-10"}
    assert f"model.ckpt-20{suffix}" in caplog.text
    assert before.path in caplog.text or "Trying the previous checkpoint" in caplog.text
    with pytest.raises(CheckpointDamagedError, match=f"model.ckpt-20{suffix}"):
        store.fetch(store.find(newest.path), str(tmp_path / "named"))


def save_one_to_preserve(place: Place) -> Checkpoint:
    """Save steps 1 to 3, just over an hour apart; of the first two, the second is preserved."""
    saved = [
        save(place.store(clock=lambda step=step: 4000.0 * step), step, Retention(newest=1, every_n_hours=1))  # type: ignore[misc]
        for step in (1, 2, 3)
    ]
    return saved[1]


def required(checkpoint: Checkpoint | None) -> Checkpoint:
    assert checkpoint is not None
    return checkpoint


def test_latest_detects_wrong_sizes_and_missing_files(place: Place) -> None:
    store = place.store()
    before, newest = save(store, 10), save(store, 20)
    place.storage.write_bytes(newest.path + ".index", b"shorter")
    assert store.latest() == before
    with pytest.raises(CheckpointDamagedError, match="has 7 bytes instead of 13"):
        store.find(newest.path)


def test_a_lost_manifest_is_damage(place: Place) -> None:
    store = place.store()
    before, newest = save(store, 10), save(store, 20)
    place.storage.remove(newest.path + MANIFEST)
    assert store.latest() == before
    with pytest.raises(CheckpointDamagedError, match=r"model\.ckpt-20\.manifest\.json is missing"):
        store.find(newest.path)


def test_a_checkpoint_published_without_a_manifest_is_valid(place: Place, tmp_path: Path) -> None:
    write_files(str(tmp_path / "model.ckpt-5"))
    place.storage.put_dir(str(tmp_path), place.url)
    place.storage.write_bytes(place.file("checkpoint"), b'model_checkpoint_path: "model.ckpt-5"')
    store = place.store()
    newest = required(store.latest())
    assert newest.step == 5
    assert contents_of(store, newest, tmp_path) == {"model.ckpt-5"}
    assert steps([save(store, 6), *store.published()]) == [6, 5, 6]
    place.storage.remove(place.file("model.ckpt-6.index"))
    assert required(store.latest()).step == 5


def test_a_replaced_checkpoint_of_the_same_name_is_detected(place: Place, tmp_path: Path) -> None:
    store = place.store()
    found = save(store, 10, content="first")
    save(store, 10, content="other")
    with pytest.raises(CheckpointDamagedError, match="is not the one that was published"):
        store.fetch(found, str(tmp_path / "copy"))
    assert contents_of(store, required(store.latest()), tmp_path) == {"other"}


def test_an_unpublished_checkpoint_is_verified_by_the_manifest_next_to_it(place: Place, tmp_path: Path) -> None:
    store = place.store()
    old = save_one_to_preserve(place)
    assert old not in store.published()
    assert store.find(old.path) == old
    place.storage.write_bytes(old.path + ".index", flipped(place.storage.read_bytes(old.path + ".index")))
    with pytest.raises(CheckpointDamagedError, match=r"model\.ckpt-2\.index has a wrong checksum"):
        store.fetch(store.find(old.path), str(tmp_path / "copy"))


def test_start_says_what_to_do_when_all_checkpoints_are_damaged(place: Place) -> None:
    store = place.store()
    place.storage.remove(save(store, 10).path + ".index")
    with pytest.raises(CheckpointDamagedError, match=r"delete .*/checkpoint to train from the beginning"):
        store.start()


# The newest usable checkpoint.


def test_with_newest_passes_none_if_no_checkpoint_is_published(place: Place) -> None:
    assert place.store().with_newest(lambda checkpoint: checkpoint) is None


def test_a_checkpoint_found_damaged_in_use_is_skipped_for_the_previous_one(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    store = place.store()
    for step in (1, 2, 3):
        save(store, step)
    tried = []

    def use(checkpoint: Checkpoint | None) -> str:
        tried.append(required(checkpoint).step)
        if len(tried) < 3:
            raise CheckpointDamagedError(required(checkpoint).path, f"step {tried[-1]} is bad")
        return "used"

    assert store.with_newest(use) == "used"
    assert tried == [3, 2, 1]
    assert "step 3 is bad" in caplog.text
    assert "step 2 is bad" in caplog.text


def test_an_error_is_raised_if_all_checkpoints_are_found_damaged_in_use(place: Place) -> None:
    store = place.store()
    save(store, 1)

    def use(checkpoint: Checkpoint | None) -> None:
        raise CheckpointDamagedError(required(checkpoint).path, "it is bad")

    with pytest.raises(CheckpointDamagedError, match="proved damaged"):
        store.with_newest(use)


def test_errors_about_other_checkpoints_are_raised(place: Place) -> None:
    store = place.store()
    save(store, 1)
    save(store, 2)

    def use(checkpoint: Checkpoint | None) -> None:
        raise CheckpointNotFoundError("elsewhere/model.ckpt-9", "it is not there")

    with pytest.raises(CheckpointNotFoundError, match="elsewhere"):
        store.with_newest(use)


# Markers and deletion.


def test_a_checkpoint_that_is_being_read_is_deleted_later(place: Place, tmp_path: Path) -> None:
    store = place.store()
    old = save(store, 1)
    with store.reading(old):
        for step in (2, 3):
            save(store, step, Retention(newest=1))
        assert steps(store.published()) == [3]
        assert contents_of(store, old, tmp_path) == {"model.ckpt-1"}
        assert not [name for name in place.names() if name.startswith("model.ckpt-2")]
    save(store, 4, Retention(newest=1))
    assert place.names() == ["checkpoint", *sorted(f"model.ckpt-4{suffix}" for suffix in (*SUFFIXES, MANIFEST))]


def test_the_marker_of_a_dead_reader_expires_after_a_day(place: Place) -> None:
    old = save(place.store(), 1)
    dead = place.store().reading(old)
    dead.__enter__()
    save(place.store(), 2, Retention(newest=1))
    assert place.store().find(old.path) == old
    save(place.store(clock=lambda: 1e9 + 25 * 3600), 3, Retention(newest=1))
    assert place.names() == ["checkpoint", *sorted(f"model.ckpt-3{suffix}" for suffix in (*SUFFIXES, MANIFEST))]
    dead.__exit__(None, None, None)


class _ReadOnlyStorage(Storage):
    def write_bytes(self, url: str, data: bytes, *, durable: bool = True) -> None:
        raise PermissionError("may not write")


def test_a_reader_needs_no_write_access(place: Place) -> None:
    save(place.store(), 1)
    reader = place.store(_ReadOnlyStorage(place.options))
    assert required(reader.with_newest(lambda checkpoint: checkpoint)).step == 1


def test_failed_deletes_are_retried_by_the_next_publication(place: Place) -> None:
    store = place.store()
    save(store, 1)
    save(place.store(_NoDeleteStorage(place.options)), 2, Retention(newest=1))
    assert "model.ckpt-1.index" in place.names()
    save(store, 3, Retention(newest=1))
    assert place.names() == ["checkpoint", *sorted(f"model.ckpt-3{suffix}" for suffix in (*SUFFIXES, MANIFEST))]


def test_files_without_a_publishing_marker_are_never_deleted(place: Place) -> None:
    store, storage = place.store(), place.storage
    kept = save_one_to_preserve(place)
    others = ["graph.pbtxt", "model.ckpt-5.index", "model.ckpt-5.meta", "notes.txt", "model.ckpt-6.data-00000-of-00001"]
    for name in others:
        storage.write_bytes(place.file(name), b"a user's")
    for step in (7, 8):
        save(store, step, Retention(newest=1))
    assert set(others) < set(place.names())
    assert store.find(kept.path) == kept


# Local copies.


def test_a_local_copy_is_shared_and_deleted_with_its_last_reader(place: Place) -> None:
    store = place.store()
    saved = save(store, 1)
    with store.local_copy(saved) as first:
        with store.local_copy(saved) as second:
            assert first == second
            assert read_files(first) == {"model.ckpt-1"}
        assert read_files(first) == {"model.ckpt-1"}
    is_local = place.storage.local_path(place.url) is not None
    assert os.path.exists(first + ".index") == is_local


def test_a_local_copy_of_a_damaged_checkpoint_is_an_error_and_leaves_no_files(place: Place) -> None:
    store = place.store()
    saved = save(store, 1)
    place.storage.write_bytes(saved.path + ".index", flipped(place.storage.read_bytes(saved.path + ".index")))
    for _ in range(2):
        with pytest.raises(CheckpointDamagedError, match="has a wrong checksum"), store.local_copy(saved):
            pass


# The fence.


class _Fenced(Exception):
    """Another writer owns model_dir."""


@pytest.mark.parametrize("calls", range(3))
def test_the_fence_stops_a_publication_before_the_first_write_and_around_the_state_file(
    place: Place, calls: int
) -> None:
    save(place.store(), 1)
    before = place.names()
    seen = []

    def fence() -> None:
        seen.append(steps(place.store().published()))
        if len(seen) > calls:
            raise _Fenced

    with place.store().staging_dir() as staging:
        write_files(f"{staging}/model.ckpt-2")
        with pytest.raises(_Fenced):
            place.store().publish(f"{staging}/model.ckpt-2", 2, Retention(newest=1), fence=fence)
    assert seen == [[1], [1], [2]][: calls + 1]
    if calls == 0:
        assert place.names() == before
    assert place.store().find("model.ckpt-1").step == 1


class _NoDeleteStorage(Storage):
    def remove(self, url: str) -> None:
        raise PermissionError("may not delete")


def test_a_failed_delete_is_logged_and_does_not_fail_the_save(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    store = place.store(_NoDeleteStorage(place.options))
    save(store, 1)
    save(store, 2, Retention(newest=1))
    assert steps(store.published()) == [2]
    assert "model.ckpt-1" in caplog.text
    assert "may not delete" in caplog.text


def test_pruning_deletes_the_index_before_the_data(place: Place) -> None:
    removed: list[str] = []

    class RecordingStorage(Storage):
        def remove(self, url: str) -> None:
            removed.append(url.rpartition("/")[2])
            super().remove(url)

    store = place.store(RecordingStorage(place.options))
    save(store, 1)
    save(store, 2, Retention(newest=1))
    of_the_old = [name for name in removed if name.startswith("model.ckpt-1.")]
    assert of_the_old[0] == "model.ckpt-1.index"
    assert sorted(of_the_old) == sorted(f"model.ckpt-1{suffix}" for suffix in (*SUFFIXES, MANIFEST))


def test_find_raises_for_a_missing_checkpoint_and_lists_the_published_ones(place: Place) -> None:
    store = place.store()
    save(store, 1)
    with pytest.raises(CheckpointNotFoundError, match=r"no files .*model\.ckpt-2.* Published in .*: model\.ckpt-1\."):
        store.find("model.ckpt-2")
    with pytest.raises(CheckpointNotFoundError):
        store.find("model.ckpt")


def test_find_says_to_omit_the_suffix(place: Place) -> None:
    saved = save(place.store(), 1)
    with pytest.raises(CheckpointNotFoundError, match="Omit the suffix"):
        place.store().find(saved.path + ".index")


def test_find_reads_other_directories(place: Place, tmp_path: Path) -> None:
    save(place.store(), 1)
    write_files(str(tmp_path / "pretrained" / "bert.ckpt"))
    found = place.store().find(f"file://{tmp_path}/pretrained/bert.ckpt")
    assert found == Checkpoint(str(tmp_path / "pretrained" / "bert.ckpt"), 0)
    assert contents_of(place.store(), found, tmp_path) == {"bert.ckpt"}


@pytest.mark.parametrize("newest", [None, 0])
def test_without_a_limit_every_checkpoint_stays_published(place: Place, newest: int | None) -> None:
    store = place.store()
    for step in range(8):
        save(store, step, Retention(newest, every_n_hours=1))
    assert steps(store.published()) == list(range(8))


def test_a_lower_limit_takes_effect_at_the_next_save(place: Place) -> None:
    store = place.store()
    for step in range(5):
        save(store, step, Retention(5))
    save(store, 5, Retention(2))
    assert steps(store.published()) == [4, 5]
    assert sorted(name for name in place.names() if name.endswith(".index")) == [
        "model.ckpt-4.index",
        "model.ckpt-5.index",
    ]


def test_a_state_file_overwritten_by_a_fenced_writer_is_written_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    def fence() -> None:
        """Allow every write."""

    def publish(step: int) -> None:
        with owner.staging_dir() as staging:
            write_files(f"{staging}/model.ckpt-{step}")
            owner.publish(f"{staging}/model.ckpt-{step}", step, KEEP_ALL, fence=fence)

    def late_write() -> None:
        """A process that was fenced after its last check."""
        place.storage.write_bytes(place.file("checkpoint"), as_it_was)

    owner = place.store()
    publish(1)
    as_it_was = place.storage.read_bytes(place.file("checkpoint"))
    publish(2)
    late_write()
    owner.republish(fence)
    assert steps(place.store().published()) == [1, 2]
    assert caplog.text.count("was overwritten by another writer") == 1
    owner.republish(fence)
    assert caplog.text.count("was overwritten by another writer") == 1

    late_write()
    publish(3)
    assert steps(place.store().published()) == [1, 2, 3]
