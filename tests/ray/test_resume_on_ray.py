"""Training that was cut off goes on with the very next row of its Ray Dataset."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from support.probes import note, notes, rank
from support.recording import EACH_SAVE_ARRIVES

from ray_estimator import EstimatorSpec, InputChangedError, dataset_input_fn

v1 = tf.compat.v1
pytestmark = pytest.mark.ray

NUM_ROWS = 50
BATCH = 8


def model_fn(features: Any, mode: str) -> EstimatorSpec:
    """A model that looks at each row's number."""
    rows = tf.identity(features["row"], name="rows")
    weight = v1.get_variable("weight", [])
    loss = tf.reduce_mean(tf.square(weight - tf.cast(rows, tf.float32) / NUM_ROWS))
    optimizer = v1.train.GradientDescentOptimizer(0.1)
    return EstimatorSpec(mode, loss=loss, train_op=optimizer.minimize(loss, v1.train.get_global_step()))


class CutOff(Exception):
    """Ends a run in the middle, as a kill would."""


class NoteRows(v1.train.SessionRunHook):
    """Notes the rows of each step; after as many steps as told it raises an error or a signal."""

    def __init__(self, rows: list[list[int]], stop_after: int | None, by_signal: int | None) -> None:
        self._rows, self._left, self._signal = rows, stop_after, by_signal

    def before_run(self, run_context: Any) -> Any:
        return v1.train.SessionRunArgs("rows:0")

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self._rows.append(run_values.results.tolist())
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                if self._signal is None:
                    raise CutOff
                signal.raise_signal(self._signal)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Parquet files with the numbers of their rows."""
    (tmp_path / "data").mkdir()
    for number, rows in enumerate(np.array_split(np.arange(NUM_ROWS), 4)):
        pyarrow.parquet.write_table(pa.table({"row": rows}), tmp_path / "data" / f"{number}.parquet")
    return tmp_path / "data"


@pytest.fixture
def dataset(cluster: Any, request: pytest.FixtureRequest, folder: Path) -> Any:
    """Lazy, or what `indirect` parameters ask for."""
    if getattr(request, "param", "lazy") == "lazy":
        return cluster.data.read_parquet(str(folder))
    return cluster.data.from_arrow([pa.table({"row": rows}) for rows in np.array_split(np.arange(NUM_ROWS), 7)])


Run = Callable[..., list[list[int]]]


@pytest.fixture
def run(in_process: Callable[..., Any]) -> Run:
    """Trains; gives the rows of each step."""

    def train(
        dataset: Any, name: str = "model", cut_after: int | None = None, by_signal: int | None = None, **given: Any
    ) -> list[list[int]]:
        steps = given.pop("steps", None)
        input_fn = dataset_input_fn(dataset, batch_size=BATCH, **given)
        rows: list[list[int]] = []
        root = Path(in_process(model_fn).model_dir).parent
        estimator = in_process(model_fn, model_dir=root / name, save_checkpoints_steps=2)
        hooks = [NoteRows(rows, cut_after, by_signal)]
        try:
            estimator.train(input_fn, steps=steps, hooks=hooks, saving_listeners=EACH_SAVE_ARRIVES)
        except (CutOff, KeyboardInterrupt):
            assert cut_after is not None
        return rows

    return train


@pytest.mark.parametrize(
    ("dataset", "how"),
    [("lazy", {"shuffle": True, "shuffle_buffer_rows": 20, "seed": 3}), ("materialized", {})],
    ids=["lazy-shuffle", "materialized-order"],
    indirect=["dataset"],
)
def test_a_run_that_was_cut_off_goes_on_with_the_next_row_in_every_epoch(dataset: Any, run: Run, how: Any) -> None:
    whole = run(dataset, "whole", steps=20, **how)
    seen: list[list[int]] = []
    # Cut off after 5 steps, and the last one saved is that before; then in the second epoch.
    for cut_after, saved in ((5, 4), (7, 6)):
        rows = run(dataset, "cut", cut_after, steps=100, **how)
        assert rows == whole[len(seen) : len(seen) + cut_after]
        seen += rows[:saved]
    assert run(dataset, "cut", steps=10, **how) == whole[10:20]


def test_without_a_seed_the_order_of_the_first_run_goes_on(dataset: Any, run: Run) -> None:
    rows = run(dataset, cut_after=3, shuffle=True)[:2] + run(dataset, steps=4, shuffle=True)
    seen = [row for batch in rows for row in batch]
    assert len(set(seen)) == len(seen) == 6 * BATCH


def test_an_endless_input_goes_on_and_a_finite_one_is_read_anew(dataset: Any, run: Run) -> None:
    whole = run(dataset, "whole", steps=9)
    assert run(dataset, "endless", steps=4) + run(dataset, "endless", steps=5) == whole

    once = run(dataset, "finite", num_epochs=1)
    assert sorted(row for batch in once for row in batch) == list(range(NUM_ROWS))
    assert run(dataset, "finite", num_epochs=1) == once
    assert run(dataset, "finite", num_epochs=1, steps=2) == once[:2]
    # Cut off, its rest comes first.
    assert run(dataset, "finite", 3, num_epochs=1) == once[:3]
    assert run(dataset, "finite", num_epochs=1) == once[2:]
    # So it is after an interrupt, whose last step is saved.
    assert run(dataset, "finite", 3, signal.SIGINT, num_epochs=1) == once[:3]
    assert run(dataset, "finite", num_epochs=1) == once[3:]


def test_other_files_are_said_and_the_caller_chooses(cluster: Any, folder: Path, run: Run) -> None:
    dataset = cluster.data.read_parquet(str(folder))
    whole = run(dataset, "cut", 5)
    pyarrow.parquet.write_table(pa.table({"row": np.arange(NUM_ROWS, NUM_ROWS + 5)}), folder / "4.parquet")
    changed = cluster.data.read_parquet(str(folder))
    with pytest.raises(InputChangedError, match=r"files: was 4 files, .*, is 5 files, "):
        run(changed, "cut", steps=1)
    with pytest.raises(InputChangedError, match="operators: was"):
        run(changed.limit(30), "cut", steps=1)
    assert run(changed, "cut", 3, resume="rows") == [whole[4], *run(changed, "other", steps=7)[5:]]
    assert run(changed, "cut", 1, resume="restart") == whole[:1]


class KillAt(v1.train.SessionRunHook):
    """Kills its worker at each of these (step, rank), once."""

    def __init__(self, folder: str, moments: Sequence[tuple[int, int]]) -> None:
        self._folder, self._moments = Path(folder), moments

    def before_run(self, run_context: Any) -> Any:
        return v1.train.SessionRunArgs("control/step_after:0")

    def after_run(self, run_context: Any, run_values: Any) -> None:
        moment = (int(run_values.results), rank())
        mark = self._folder / f"killed-at-{moment[0]}"
        if moment in self._moments and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def deterministic_model_fn(features: Any, mode: str) -> EstimatorSpec:
    """A small network with Adam."""
    tf.config.experimental.enable_op_determinism()
    tf.random.set_seed(7)
    rows = tf.cast(features["row"], tf.float32)[:, None] / NUM_ROWS
    kernel = v1.get_variable("kernel", [1, 16], initializer=v1.glorot_uniform_initializer(seed=1))
    top = v1.get_variable("top", [16, 1], initializer=v1.glorot_uniform_initializer(seed=2))
    loss = tf.reduce_mean(tf.square(tf.matmul(tf.tanh(tf.matmul(rows, kernel)), top) - tf.sin(rows)))
    train_op = v1.train.AdamOptimizer(0.01).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


@pytest.mark.kills
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_killed_at_random_steps_end_with_the_weights_of_workers_that_nobody_killed(
    cluster: Any, on_ray: Callable[..., Any], tmp_path: Path, kills: int
) -> None:
    dataset = cluster.data.from_arrow([pa.table({"row": rows}) for rows in np.array_split(np.arange(NUM_ROWS), 7)])
    input_fn = dataset_input_fn(dataset, batch_size=BATCH, shuffle=True, shuffle_buffer_rows=20, seed=3)
    random = np.random.default_rng(kills)
    steps = sorted(random.choice(np.arange(2, 40), kills, replace=False).tolist())
    moments = [(step, int(random.integers(2))) for step in steps]
    weights = {}
    for name, hooks in {"whole": [], "killed": [partial(KillAt, str(tmp_path), moments)]}.items():
        estimator = on_ray(
            deterministic_model_fn, model_dir=tmp_path / name, max_failures=kills, save_checkpoints_steps=3
        )
        estimator.train(input_fn, max_steps=40, hooks=hooks)
        weights[name] = {each: estimator.get_variable_value(each) for each in estimator.get_variable_names()}
    assert len(list(tmp_path.glob("killed-at-*"))) == kills
    assert weights["whole"].keys() == weights["killed"].keys()
    for name, value in weights["whole"].items():
        assert value.tobytes() == weights["killed"][name].tobytes(), name


class NoteRowsOfRank(v1.train.SessionRunHook):
    """Notes (step, its rows) on each rank."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def before_run(self, run_context: Any) -> Any:
        return v1.train.SessionRunArgs(("control/step_after:0", "rows:0"))

    def after_run(self, run_context: Any, run_values: Any) -> None:
        step, rows = run_values.results
        note(self._folder, "rows", [int(step), rows.tolist()])


def input_fn_of_a_share(input_context: Any) -> tf.data.Dataset:
    """Each rank's share of the numbers, in an order of its own."""
    share = tf.data.Dataset.range(NUM_ROWS).shard(input_context.num_input_pipelines, input_context.input_pipeline_id)
    rows = share.shuffle(10, seed=5).repeat(4).batch(BATCH // 2, drop_remainder=True)
    return rows.map(lambda row: {"row": row})


@pytest.mark.slow
def test_what_tf_data_gives_goes_on_with_the_next_batch_on_each_rank(
    on_ray: Callable[..., Any], tmp_path: Path
) -> None:
    killed_at = 9
    estimator = on_ray(model_fn, max_failures=1, save_checkpoints_steps=4)
    hooks = [partial(NoteRowsOfRank, str(tmp_path)), partial(KillAt, str(tmp_path), [(killed_at, 1)])]
    estimator.train(input_fn_of_a_share, hooks=hooks, saving_listeners=EACH_SAVE_ARRIVES)
    steps = 4 * NUM_ROWS // BATCH
    for worker, noted in notes(tmp_path, "rows").items():
        first, second = noted[:killed_at], noted[killed_at:]
        assert [step for step, _ in first] == list(range(1, killed_at + 1))
        assert [step for step, _ in second] == list(range(9, steps + 1))
        assert first[8:] == second[:1]
        seen = [row for _, rows in first[:8] + second for row in rows]
        assert len(seen) == steps * BATCH // 2
        for one_pass in np.split(np.array(seen), 4):
            assert sorted(one_pass) == list(range(worker, NUM_ROWS, 2))
