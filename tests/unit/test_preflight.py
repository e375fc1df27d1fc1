"""The preflight check of model_dir: errors name the failed operation, without credentials."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_estimator._storage.preflight import Preflight
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import ModelDirAccessError

SECRETS = {"key": "AKIA4711", "client_kwargs": {"aws_session_token": "t0psecret"}, "endpoint_url": "http://store:9000"}


def run(preflight: Preflight) -> None:
    with preflight.file_from("the driver"):
        pass


@pytest.mark.parametrize("model_dir", ["{tmp}/new/model", "memory://preflight/model"])
def test_a_model_dir_that_works_is_left_empty(model_dir: str, tmp_path: Path) -> None:
    preflight = Preflight(model_dir.format(tmp=tmp_path), Storage())

    with preflight.file_from("the driver") as name:
        preflight.look_for(name, "a worker")
        assert preflight.storage.list_dir(preflight.model_dir) == [name]

    assert preflight.storage.list_dir(preflight.model_dir) == []


def test_a_path_below_a_file_is_refused_with_the_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    model_dir = str(tmp_path / "file" / "model")

    with pytest.raises(ModelDirAccessError) as refused:
        run(Preflight(model_dir, Storage()))

    assert str(refused.value).startswith(f"model_dir {model_dir} cannot be used from the driver: writing {model_dir}/.")
    assert "NotADirectoryError: [Errno 20] Not a directory" in str(refused.value)


def fail(*args: Any, **kwargs: Any) -> Any:
    try:
        raise ConnectionError("the signature of AKIA4711 with t0psecret is wrong")
    except ConnectionError as error:
        raise PermissionError("http://store:9000 refuses ftp://user:pass@host") from error


@pytest.mark.parametrize(
    ("method", "broken", "text"),
    [
        ("write_bytes", fail, "writing {dir}/.preflight-"),
        ("read_bytes", fail, "reading {dir}/.preflight-"),
        ("read_bytes", lambda storage, url: b"", "its content differs from what was written"),
        ("list_dir", fail, "listing {dir} failed: PermissionError: http://store:9000"),
        ("list_dir", lambda storage, url: ["other"], "was written, but is not listed"),
        ("remove", fail, "deleting {dir}/.preflight-"),
        ("remove", lambda storage, url: None, "it was deleted, but still exists"),
    ],
)
def test_the_error_names_the_failed_operation_without_credentials(
    method: str, broken: Callable[..., Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, method, broken)

    with pytest.raises(ModelDirAccessError) as refused:
        run(Preflight(str(tmp_path), Storage(SECRETS)))

    error = refused.value
    assert text.format(dir=tmp_path) in str(error)
    assert error.where == "the driver"
    printed = "".join(traceback.format_exception(error))
    assert not any(secret in printed for secret in ("AKIA4711", "t0psecret", "user:pass"))
    if broken is fail:
        words = "PermissionError: http://store:9000 refuses ftp://<redacted>@host (ConnectionError: the signature of"
        assert words in str(error)
    if method != "remove":
        monkeypatch.undo()
        assert list(tmp_path.iterdir()) == []


def test_a_missing_file_of_another_process_means_a_different_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelDirAccessError, match=r"from a worker on node 10\.0\.0\.2: .*all nodes share"):
        Preflight(str(tmp_path), Storage()).look_for(".preflight-1", "a worker on node 10.0.0.2")


def test_training_in_process_checks_model_dir_first(in_process: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")

    def unused() -> Any:
        pytest.fail("The input was opened.")

    estimator = in_process(lambda features: unused(), model_dir=str(tmp_path / "file" / "model"))
    with pytest.raises(ModelDirAccessError, match="from this process: writing"):
        estimator.train(lambda: unused(), steps=1)
