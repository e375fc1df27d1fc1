"""Where a training run starts to read when it resumes from a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ray_estimator import InputChangedError, dataset_input_fn
from ray_estimator._data.position import (
    EndOfRun,
    InputPosition,
    InputSource,
    IteratorPosition,
    beginning,
    iterators_of,
    position_from_json,
)

PARTS = {"files": "3 files, ab", "columns": "x: int64"}
SOURCE = InputSource(PARTS, seed=None, endless=True)
FOUND = InputPosition(run=4, rows=1200, rows_per_epoch=500, seed=7, parts=PARTS)
FINITE = replace(SOURCE, endless=False)
OTHER = replace(SOURCE, parts={**PARTS, "files": "4 files, cd"})
STOPPED, EXHAUSTED = EndOfRun(4, input_ended=False), EndOfRun(4, input_ended=True)


@pytest.mark.parametrize(
    ("source", "end", "rows"),
    [
        (SOURCE, None, 1200),  # interrupted
        (FINITE, None, 1200),
        (SOURCE, STOPPED, 1200),  # endless: continues
        (SOURCE, EndOfRun(3, input_ended=True), 1200),  # of an earlier run
        (FINITE, STOPPED, 0),  # each call starts over
        (FINITE, EXHAUSTED, 0),
        (OTHER, STOPPED, 0),
        (replace(SOURCE, resume="restart"), None, 0),
        (replace(OTHER, resume="restart"), None, 0),
        (replace(OTHER, resume="rows"), None, 1200),
        (replace(FINITE, resume="rows"), EXHAUSTED, 1200),
    ],
)
def test_the_start_of_a_new_run(source: InputSource, end: EndOfRun | None, rows: int) -> None:
    position = beginning(source, FOUND, end, run=5)
    assert position.rows == rows
    assert position.run == 5
    assert position.parts == source.parts


def test_without_a_position_a_run_starts_at_the_first_row() -> None:
    assert beginning(SOURCE, None, None, 1) == InputPosition(1, 0, None, None, PARTS)


def test_the_same_run_resumes_at_its_position() -> None:
    assert beginning(FINITE, FOUND, EXHAUSTED, run=4) == FOUND
    assert beginning(replace(OTHER, resume="restart"), FOUND, None, run=4) == FOUND


def test_the_seed_of_the_earlier_run_is_kept_unless_another_is_set() -> None:
    assert beginning(SOURCE, FOUND, None, 5).seed == 7
    assert beginning(replace(SOURCE, seed=7), FOUND, None, 5).seed == 7
    with pytest.raises(InputChangedError, match="seed: was 7, is 8"):
        beginning(replace(SOURCE, seed=8), FOUND, None, 5)
    assert beginning(replace(SOURCE, seed=8), FOUND, STOPPED, 5) == InputPosition(5, 0, None, 8, PARTS)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({**PARTS, "files": "4 files, cd"}, "files: was 3 files, ab, is 4 files, cd"),
        ({"columns": "x: int64"}, "files: was 3 files, ab, is nothing"),
        ({**PARTS, "shuffle": "none"}, "shuffle: was nothing, is none"),
    ],
)
def test_an_interrupted_run_does_not_resume_with_a_changed_input(parts: dict[str, str], text: str) -> None:
    with pytest.raises(InputChangedError, match=text):
        beginning(replace(SOURCE, parts=parts), FOUND, None, 5)


def test_rows_add_up_and_the_size_of_an_epoch_is_kept() -> None:
    assert FOUND.after(64, None) == replace(FOUND, rows=1264)
    assert replace(FOUND, rows_per_epoch=None).after(1, 300).rows_per_epoch == 300


def test_a_row_position_survives_json() -> None:
    assert InputPosition.from_json(json.loads(json.dumps(FOUND.to_json()))) == FOUND


@pytest.mark.parametrize("other", [None, {}, {"rows": 3}, "text", {**FOUND.to_json(), "rows": "many"}])
def test_other_values_decode_to_none(other: Any) -> None:
    assert InputPosition.from_json(other) is None


def test_an_unknown_value_of_resume_is_refused() -> None:
    with pytest.raises(ValueError, match="'exact', 'restart', 'rows'"):
        dataset_input_fn(lambda: None, batch_size=1, resume="sometimes")  # type: ignore[arg-type, return-value]


ITERATORS = IteratorPosition(run=4, num_ranks=2)


@pytest.mark.parametrize(
    ("found", "end", "run", "num_ranks", "resumes"),
    [
        (ITERATORS, None, 5, 2, True),  # interrupted
        (ITERATORS, EndOfRun(3, input_ended=True), 5, 2, True),  # of an earlier run
        (ITERATORS, STOPPED, 4, 2, True),  # the same run
        (ITERATORS, STOPPED, 5, 2, False),
        (ITERATORS, None, 5, 3, False),
        (FOUND, None, 5, 2, False),
        (None, None, 5, 2, False),
    ],
)
def test_iterators_resume_an_interrupted_run_with_as_many_ranks(
    found: Any, end: EndOfRun | None, run: int, num_ranks: int, resumes: bool
) -> None:
    assert iterators_of(found, end, run, num_ranks) == (ITERATORS if resumes else None)


def test_rows_start_at_the_first_after_a_run_that_read_an_iterator() -> None:
    assert beginning(SOURCE, ITERATORS, None, 5) == InputPosition(5, 0, None, None, PARTS)


@pytest.mark.parametrize("position", [FOUND, ITERATORS], ids=["rows", "iterators"])
def test_both_kinds_of_position_survive_json(position: Any) -> None:
    assert position_from_json(json.loads(json.dumps(position.to_json()))) == position
