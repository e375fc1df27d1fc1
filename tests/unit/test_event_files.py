"""Names of event files and of evaluation directories."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from ray_estimator._checkpoints.event_files import EVENT_FILES, eval_dir_name, is_eval_dir_name


@pytest.mark.parametrize(("name", "folder"), [(None, "eval"), ("", "eval"), ("test", "eval_test")])
def test_evaluations_have_a_directory_by_name(name: str | None, folder: str) -> None:
    assert eval_dir_name(name) == folder
    assert is_eval_dir_name(folder)


@pytest.mark.parametrize("name", ["export", "evaluation", "model.ckpt-1.index"])
def test_other_directories_are_no_evaluations(name: str) -> None:
    assert not is_eval_dir_name(name)


def test_the_glob_matches_the_files_that_tensorflow_writes() -> None:
    assert fnmatch("events.out.tfevents.1700000000.host.123", EVENT_FILES)
    assert not fnmatch("model.ckpt-1.index", EVENT_FILES)
