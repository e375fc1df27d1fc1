"""The checkpoint store: lookup, and compatibility with TensorFlow's reader and Saver."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from support.saves import KEEP_ALL, SUFFIXES, save, steps, store_at, write_files
from tensorflow.python.training import saver as tf_saver

from ray_estimator._checkpoints.retention import Checkpoint, Published, Retention
from ray_estimator._checkpoints.state_proto import CheckpointState
from ray_estimator._checkpoints.store import CheckpointStore
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import CheckpointDamagedError


@pytest.fixture
def local_dir(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def test_a_local_checkpoint_is_read_in_place(local_dir: str, tmp_path: Path) -> None:
    store = store_at(f"file://{local_dir}/")
    saved = save(store, 10)
    assert store.fetch(saved, str(tmp_path / "unused")) == f"{local_dir}/model.ckpt-10"
    assert not (tmp_path / "unused").exists()


def test_local_files_are_renamed_into_place(local_dir: str) -> None:
    store = store_at(local_dir)
    with store.staging_dir() as staging:
        write_files(f"{staging}/model.ckpt-1")
        before = os.stat(f"{staging}/model.ckpt-1.index").st_ino
        store.publish(f"{staging}/model.ckpt-1", 1, KEEP_ALL)
    assert os.stat(f"{local_dir}/model.ckpt-1.index").st_ino == before


def test_publish_refuses_files_in_model_dir_and_keeps_them(local_dir: str) -> None:
    write_files(f"{local_dir}/model.ckpt-1")
    with pytest.raises(ValueError, match="staging_dir"):
        store_at(local_dir).publish(f"{local_dir}/model.ckpt-1", 1, KEEP_ALL)
    assert len(os.listdir(local_dir)) == len(SUFFIXES)


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


def test_files_of_unpublished_checkpoints_are_ignored(local_dir: str) -> None:
    store = store_at(local_dir)
    published = save(store, 10)
    write_files(f"{local_dir}/model.ckpt-99")
    assert store.latest() == published
    assert store.find(f"{local_dir}/model.ckpt-99").step == 99


class _UnreadableStorage(Storage):
    def read_bytes(self, url: str) -> bytes:
        raise PermissionError(url)


def test_a_state_file_that_cannot_be_read_is_an_error_and_not_an_empty_store(local_dir: str) -> None:
    save(store_at(local_dir), 1)
    with pytest.raises(PermissionError):
        CheckpointStore(local_dir, _UnreadableStorage()).latest()


# Lookup by path.


def test_find_resolves_against_the_current_directory_then_model_dir(
    local_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = store_at(local_dir)
    save(store, 1)
    assert store.find("model.ckpt-1").path == f"{local_dir}/model.ckpt-1"
    write_files(str(tmp_path / "model.ckpt-1"))
    assert store.find("model.ckpt-1").path == str(tmp_path / "model.ckpt-1")
    assert store.find("run/model.ckpt-1").path == f"{local_dir}/model.ckpt-1"


def test_find_never_falls_back_from_a_damaged_checkpoint(
    local_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = store_at(local_dir)
    save(store, 1)
    write_files(str(tmp_path / "model.ckpt-1"), suffixes=(".index",))
    with pytest.raises(CheckpointDamagedError, match=r"model\.ckpt-1\.data-00000-of-00001 is missing"):
        store.find("model.ckpt-1")


# The state file, against TensorFlow's own reader and writer.

ODD_NAMES = ["model.ckpt-1", "sp ace-2", 'quo"te\\-3', "ünïcødé-4", "tab\tnew\nline-5", "single'-6"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_tensorflow_parses_our_output(tmp_path: Path, name: str) -> None:
    state = CheckpointState(("first-0", name), (1.5, 1759000000.123456), 1e16)
    (tmp_path / "checkpoint").write_text(state.to_text())
    read = tf.train.get_checkpoint_state(str(tmp_path))
    assert read.model_checkpoint_path == f"{tmp_path}/{name}"
    assert list(read.all_model_checkpoint_paths) == [f"{tmp_path}/first-0", f"{tmp_path}/{name}"]
    assert list(read.all_model_checkpoint_timestamps) == [1.5, 1759000000.123456]
    assert read.last_preserved_timestamp == 1e16


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_output_of_tensorflow_is_parsed(tmp_path: Path, name: str) -> None:
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
def test_our_own_output_is_parsed(name: str) -> None:
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
def test_text_that_is_not_a_checkpoint_state_is_a_value_error(text: str) -> None:
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
def test_checkpoints_published_by_tensorflow_are_read_and_pruned(local_dir: str, absolute: bool) -> None:
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
    assert not [name for name in os.listdir(local_dir) if name.startswith(("model.ckpt-1.", "model.ckpt-2."))]


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


def test_a_state_file_edited_by_hand_makes_an_older_checkpoint_the_latest(local_dir: str) -> None:
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

    # TensorFlow's Saver uses only `time.time()` of the module.
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


def test_a_restart_does_not_reset_the_hours(local_dir: str) -> None:
    clock = _Clock()
    for step in range(9):
        # Each save comes from a new process, 20 minutes after the last.
        save(store_at(local_dir, clock=clock), step, Retention(1, every_n_hours=1))
        clock.now += 1200
    assert index_files(Path(local_dir)) == {f"model.ckpt-{step}.index" for step in (4, 7, 8)}


def published_at(*hours: float) -> list[Published]:
    return [Published(Checkpoint(f"model.ckpt-{i}", i), hour * 3600) for i, hour in enumerate(hours)]


def test_the_first_interval_starts_at_the_newest_checkpoint() -> None:
    published = published_at(1, 5, 9)
    pruning = Retention(newest=1, every_n_hours=1).prune(published, last_preserved_timestamp=None)
    assert pruning.delete == tuple(published[:2])
    assert pruning.last_preserved_timestamp == 9 * 3600


def test_a_decision_has_checkpoints_to_keep_to_preserve_and_to_delete() -> None:
    published = published_at(0.9, 1.0, 1.1, 1.9, 2.1, 2.2)
    pruning = Retention(newest=1, every_n_hours=1).prune(published, last_preserved_timestamp=0.0)
    assert pruning.keep == (published[5],)
    assert pruning.preserve == (published[2], published[4])
    assert pruning.delete == (published[0], published[1], published[3])
    assert pruning.last_preserved_timestamp == 2 * 3600


def test_without_checkpoints_the_decision_is_empty() -> None:
    pruning = Retention(newest=1, every_n_hours=1).prune([], None)
    assert (pruning.keep, pruning.preserve, pruning.delete, pruning.last_preserved_timestamp) == ((), (), (), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"newest": -1}, "keep_checkpoint_max"), ({"every_n_hours": 0}, "keep_checkpoint_every_n_hours")],
)
def test_invalid_retention_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retention(**arguments)
