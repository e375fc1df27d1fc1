"""After an interruption, the tf.data iterator of an input_fn resumes at the next batch, if TensorFlow can save it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.recording import EACH_SAVE_ARRIVES
from tensorflow.python.util import deprecation

from ray_estimator import EstimatorSpec
from ray_estimator._engine.input import iterator_state

v1 = tf.compat.v1

NUM_ROWS = 50
BATCH = 8


def model_fn(features: Any, mode: str) -> EstimatorSpec:
    """A model that exposes the numbers of its rows."""
    rows = tf.identity(getattr(features, "flat_values", features), name="rows")
    weight = v1.get_variable("weight", [])
    loss = tf.square(weight) + 0.0 * tf.reduce_sum(tf.cast(rows, tf.float32))
    optimizer = v1.train.GradientDescentOptimizer(0.1)
    return EstimatorSpec(mode, loss=loss, train_op=optimizer.minimize(loss, v1.train.get_global_step()))


class CutOff(Exception):
    """Interrupts a run, as a kill would."""


class NoteRows(v1.train.SessionRunHook):
    """Records the rows of each step, and raises `CutOff` after `cut_after` steps."""

    def __init__(self, rows: list[list[int]], cut_after: int | None) -> None:
        self._rows, self._left = rows, cut_after

    def before_run(self, run_context: Any) -> Any:
        return v1.train.SessionRunArgs("rows:0")

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self._rows.append(np.ravel(run_values.results).tolist())
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise CutOff


Run = Callable[..., list[list[int]]]


@pytest.fixture
def run(in_process: Callable[..., Any], tmp_path: Path) -> Run:
    """Trains, saves every second step, and returns the rows of each step."""

    def train(
        input_fn: Callable[[], Any], name: str = "model", cut_after: int | None = None, steps: int | None = None
    ) -> list[list[int]]:
        rows: list[list[int]] = []
        estimator = in_process(model_fn, model_dir=tmp_path / name, save_checkpoints_steps=2, tf_random_seed=3)
        try:
            estimator.train(
                input_fn, steps=steps, hooks=[NoteRows(rows, cut_after)], saving_listeners=EACH_SAVE_ARRIVES
            )
        except CutOff:
            assert cut_after is not None
        return rows

    return train


def shuffled() -> tf.data.Dataset:
    rows = tf.data.Dataset.from_tensor_slices(np.arange(NUM_ROWS)).shuffle(20).repeat()
    return rows.map(lambda row: row, num_parallel_calls=2).batch(BATCH).prefetch(2)


def finite() -> tf.data.Dataset:
    return tf.data.Dataset.range(NUM_ROWS).batch(BATCH)


def ragged() -> tf.data.Dataset:
    rows = tf.data.Dataset.range(NUM_ROWS).shuffle(20).repeat()
    return rows.batch(BATCH).map(lambda rows: tf.RaggedTensor.from_row_lengths(rows, [3, 0, 5]))


def looked_up() -> tf.data.Dataset:
    keys = tf.constant(np.arange(NUM_ROWS))
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, keys * 2), -1)
    return tf.data.Dataset.range(NUM_ROWS).shuffle(20).repeat().map(table.lookup).batch(BATCH)


def in_memory() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(np.arange(NUM_ROWS)).cache().repeat().batch(BATCH)


def from_python() -> tf.data.Dataset:
    def rows() -> Iterator[int]:
        yield from range(NUM_ROWS)

    return tf.data.Dataset.from_generator(rows, output_signature=tf.TensorSpec([], tf.int64)).batch(BATCH)


@pytest.mark.parametrize("input_fn", [shuffled, ragged, looked_up, in_memory], ids=lambda each: each.__name__)
def test_an_interrupted_run_resumes_at_the_next_batch_in_every_epoch(run: Run, input_fn: Callable[[], Any]) -> None:
    whole = run(input_fn, "whole", steps=14)
    seen: list[list[int]] = []
    # Interrupted after 3 steps, of which 2 are saved; then in the second epoch.
    for cut_after, saved in ((3, 2), (7, 6)):
        assert run(input_fn, "cut", cut_after) == whole[len(seen) : len(seen) + cut_after]
        seen = whole[: len(seen) + saved]
    assert run(input_fn, "cut", steps=6) == whole[8:14]


def test_no_deprecation_is_logged(run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecation, "_PRINTED_WARNING", {})  # TensorFlow logs each once per process
    run(lambda: tf.data.Dataset.range(NUM_ROWS).batch(BATCH))
    assert "deprecated" not in caplog.text


def test_a_run_after_one_that_ended_starts_at_the_first_batch(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    once = run(finite)
    assert sorted(row for rows in once for row in rows) == list(range(NUM_ROWS))
    assert run(finite) == once
    assert run(finite, steps=2) == once[:2]
    with caplog.at_level(logging.INFO):
        assert run(finite, cut_after=3) == once[:3]
    assert "The input of input_fn restarts from its beginning." in caplog.text
    assert run(finite) == once[2:]


def test_a_run_interrupted_at_the_end_of_its_input_runs_no_step(run: Run, tmp_path: Path) -> None:
    once = run(finite)
    assert run(lambda: finite().take(4), "cut", cut_after=4) == once[:4]
    assert run(lambda: finite().take(4), "cut") == []


def test_a_run_interrupted_before_its_first_save_starts_at_the_first_batch(run: Run) -> None:
    assert run(shuffled, cut_after=1) == run(shuffled, "whole", steps=1)
    assert run(shuffled, steps=4) == run(shuffled, "whole again", steps=4)


def test_a_changed_pipeline_starts_at_the_first_batch_and_logs_it(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    def others() -> tf.data.Dataset:
        return tf.data.Dataset.range(100, 200).batch(BATCH)

    run(finite, cut_after=5)
    assert run(others, steps=1) == [list(range(100, 108))]
    assert "its pipeline has changed since the last run" in caplog.text


@pytest.mark.parametrize(
    ("input_fn", "limit", "reason"),
    [
        (from_python, {}, r"PyFunc is stateful\.$"),
        (in_memory, {"_MAX_BYTES": 399}, r"the pipeline has 0 MiB of constants\.$"),
        (finite, {"_MAX_BYTES": 99}, r"shuffle\(\) and cache\(\) use 0 MiB\.$"),
        (finite, {"_MAX_GROWTH_BYTES": -(2**40)}, r"shuffle\(\) and cache\(\) may use most of -?\d+ MiB\.$"),
    ],
    ids=["in Python", "constants", "buffers", "memory"],
)
def test_an_iterator_that_cannot_be_saved_is_logged_once(
    run: Run,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    input_fn: Callable[[], Any],
    limit: dict[str, int],
    reason: str,
) -> None:
    for name, value in limit.items():
        monkeypatch.setattr(iterator_state, name, value)
    with caplog.at_level(logging.INFO):
        first = run(input_fn, cut_after=5)
    logged = [record.message for record in caplog.records if "cannot be saved" in record.message]
    assert len(logged) == 1
    assert re.search(reason, logged[0])
    assert run(input_fn, steps=3) == first[:3]


def test_the_state_is_stored_and_pruned_with_its_checkpoint(run: Run, tmp_path: Path) -> None:
    run(shuffled, steps=14)
    names = {path.name for path in (tmp_path / "model").glob("*.input-*")}
    assert names == {f"model.ckpt-{step}.input-00000-of-00001" for step in (6, 8, 10, 12, 14)}
