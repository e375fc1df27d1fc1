"""`ray-estimator inspect`: reports of intact and damaged model_dirs, on any store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import Result
from support.saves import KEEP_ALL, Place, save, write_files
from support.stores import FileServer
from typer.testing import CliRunner

from ray_estimator._checkpoints.lease import acquire
from ray_estimator._data.position import InputPosition
from ray_estimator._process import identity
from ray_estimator.cli import showing
from ray_estimator.cli.app import app


def inspect(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def said(*arguments: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(inspect(*arguments, "--json").stdout)
    return answer


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        yield Place(str(tmp_path / "run"))
        return
    yield Place("memory://inspected/run")
    fsspec.filesystem("memory").rm("/inspected", recursive=True)


def test_checkpoints_are_shown_with_step_size_age_and_state(place: Place) -> None:
    store = place.store(clock=lambda: 0.5)
    save(store, 100)
    save(store, 200)

    result = inspect(place.url)
    answer = said(place.url)

    assert result.exit_code == 0, result.output
    rows = [re.split(r"\s*│\s*", line)[1:-1] for line in result.stdout.splitlines() if "model.ckpt" in line]
    assert [(name, step, health) for name, step, _, _, health in rows] == [
        ("model.ckpt-100", "100", "intact"),
        ("model.ckpt-200", "200", "intact"),
    ]
    assert "writer: no training" in result.stdout
    newest = answer["checkpoints"][-1]
    files = [place.file(name) for name in place.names() if name.startswith("model.ckpt-200")]
    assert newest == {
        "name": "model.ckpt-200",
        "step": 200,
        "size": sum(place.storage.size(file) for file in files),
        "published": True,
        "published_at": 0.5,
        "has_manifest": True,
        "defect": None,
    }
    assert (answer["is_damaged"], answer["position"], answer["metrics"]) == (False, None, {})


def test_a_truncated_checkpoint_is_damage(place: Place) -> None:
    save(place.store(), 100)
    save(place.store(), 200)
    place.storage.write_bytes(place.file("model.ckpt-100.index"), b"cut")

    result = inspect(place.url)

    assert result.exit_code == 1
    assert "\n!! model.ckpt-100.index has 3 bytes instead of" in result.stdout
    assert [each["defect"] is None for each in said(place.url)["checkpoints"]] == [False, True]


def test_a_missing_manifest_and_a_missing_file_are_damage(place: Place) -> None:
    save(place.store(), 100)
    save(place.store(), 200)
    place.storage.remove(place.file("model.ckpt-100.manifest.json"))
    place.storage.remove(place.file("model.ckpt-200.data-00001-of-00002"))

    answer = said(place.url)

    assert [each["defect"] for each in answer["checkpoints"]] == [
        "model.ckpt-100.manifest.json is missing",
        "model.ckpt-200.data-00001-of-00002 is missing",
    ]
    assert answer["is_damaged"]


def test_verify_finds_a_flipped_byte(place: Place) -> None:
    checkpoint = save(place.store(), 100)
    url = checkpoint.path + ".index"
    place.storage.write_bytes(url, place.storage.read_bytes(url).swapcase())

    assert inspect(place.url, "--verify").exit_code == 1
    assert "has a wrong checksum" in said(place.url, "--verify")["checkpoints"][0]["defect"]


def test_verify_accepts_an_intact_checkpoint(place: Place) -> None:
    save(place.store(), 100)

    assert inspect(place.url, "--verify").exit_code == 0


def test_a_damaged_state_file_is_damage_and_leaves_checkpoints_unpublished(place: Place) -> None:
    save(place.store(), 100)
    place.storage.write_bytes(place.file("checkpoint"), b"\x00\xff")

    result = inspect(place.url)

    assert result.exit_code == 1
    assert "!! The state file `checkpoint` is damaged" in result.stdout
    assert [each["published"] for each in said(place.url)["checkpoints"]] == [False]


def test_checkpoints_of_tensorflow_have_no_manifest_and_are_not_damaged(tmp_path: Path) -> None:
    write_files(str(tmp_path / "model.ckpt-7"))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7"\n')

    answer = said(tmp_path)

    (only,) = answer["checkpoints"]
    assert (only["step"], only["has_manifest"], only["published_at"], only["defect"]) == (7, False, None, None)
    assert inspect(tmp_path).exit_code == 0


def test_unpublished_files_are_listed_and_are_not_damage(place: Place) -> None:
    save(place.store(), 100)
    place.storage.write_bytes(place.file("model.ckpt-150.index"), b"half")

    answer = said(place.url)

    assert [(each["step"], each["published"]) for each in answer["checkpoints"]] == [(100, True), (150, False)]
    assert inspect(place.url).exit_code == 0


def test_the_writer_is_shown(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    lease = acquire(place.url, place.storage)
    process = identity.Process.current()

    assert f"writer: process {process.pid} on {process.host}, since 2" in inspect(place.url).stdout
    lease.release()
    assert f"writer: none at present; last: process {process.pid} on" in inspect(place.url).stdout
    assert said(place.url)["writer"] == {
        "host": process.host,
        "pid": process.pid,
        "since": said(place.url)["writer"]["since"],
        "ended": True,
    }


def test_the_position_in_the_input_is_that_of_the_newest_checkpoint(tmp_path: Path) -> None:
    store = Place(str(tmp_path)).store()
    for step, rows in ((100, 6400), (200, 12800)):
        with store.staging_dir() as staging:
            prefix = f"{staging}/model.ckpt-{step}"
            write_files(prefix)
            store.publish(prefix, step, KEEP_ALL, position=InputPosition(1, rows, 5000, None, {}))

    assert "input: 12800 rows read at the newest checkpoint, 2.56 epochs of 5000" in inspect(tmp_path).stdout
    assert said(tmp_path)["position"]["rows"] == 12800


def test_inspecting_changes_nothing(place: Place) -> None:
    save(place.store(), 100)
    before = {name: place.storage.read_bytes(place.file(name)) for name in place.names()}

    inspect(place.url, "--verify")

    assert {name: place.storage.read_bytes(place.file(name)) for name in place.names()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such/dir"], "no files in /no/such/dir"),
        (["memory://no/such"], "no files in memory://no/such"),
        (["nostore://bucket/run"], "nostore://bucket/run cannot be read: ValueError"),
        ([], "MODEL_DIR"),
        (["/tmp", "--storage-options", "x"], "must be JSON"),
    ],
)
def test_unreadable_model_dirs_exit_with_2(arguments: list[str], words: str) -> None:
    result = inspect(*arguments)

    assert result.exit_code == 2
    assert words in result.output


def test_storage_options_are_used_and_not_shown() -> None:
    server = FileServer(password="t0psecret")
    with server.running():
        refused = inspect(server.url("/run"))
        url, options = server.url("/run"), json.dumps({**server.options, "token": "t0psecret"})
        shown = inspect(url, "--storage-options", options)

    assert refused.exit_code == shown.exit_code == 2
    assert "t0psecret" not in shown.output


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (2**51, "2048.0 TiB")]
)
def test_sizes_have_units(size: int, words: str) -> None:
    assert showing._size(size) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "now"), (59, "59 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_ages_have_units(seconds: float, words: str) -> None:
    assert showing._duration(seconds) == words
