"""Rows as features and labels: dtypes, ragged lists, map_fn, passes, and errors."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from ray_estimator import EstimatorSpec, InputTimeoutError, ModeKeys, RunConfig
from ray_estimator._checkpoints.lease import hold
from ray_estimator._data.columns import column_specs
from ray_estimator._data.position import InputPosition, InputSource
from ray_estimator._engine import entrypoints
from ray_estimator._engine.input.feed import Feed, batch_dimension, open_feed
from ray_estimator._engine.input.rows import RowReader, dataset_of_rows
from ray_estimator._jobs.jobs import EvaluateJob, PredictJob, RowSpec, TrainJob, UserCode
from ray_estimator._jobs.serialization import InPlace
from ray_estimator._runtime.inline_runtime import InlineWorker
from ray_estimator._storage.storage import Storage

v1 = tf.compat.v1


def row_spec(table: pa.Table, labels: tuple[str, ...] = (), **options: Any) -> RowSpec:
    features = [name for name in table.schema.names if name not in labels]
    return RowSpec(
        column_specs(table.schema, features),
        column_specs(table.schema, labels),
        single_label=len(labels) == 1,
        **{"batch_size": 2, **options},
    )


def batches(
    table: pa.Table, mode: str = ModeKeys.TRAIN, labels: tuple[str, ...] = (), map_fn: Any = None, **options: Any
) -> list[tuple[Any, Any]]:
    """Every (features, labels) of the graph of `mode`."""
    job = TrainJob(InPlace({}), RunConfig(), "unused", row_spec(table, labels, **options), generation=1)
    seen = []
    with tf.Graph().as_default(), v1.Session() as session:
        feed = open_feed(job, UserCode(None, map_fn=map_fn), mode, lambda: iter([table.slice(0, 4), table.slice(4)]))
        for hook in feed.hooks:
            hook.after_create_session(session, None)
        fetches = feed.features if feed.labels is None else (feed.features, feed.labels)
        with feed.explaining_errors():
            while True:
                try:
                    values = session.run(fetches)
                except tf.errors.OutOfRangeError:
                    return seen
                seen.append(values if feed.labels is not None else (values, None))


@pytest.fixture
def table() -> pa.Table:
    return pa.table(
        {
            "number": pa.array([1, 2, 3, 4, 5], pa.int32()),
            "half": np.arange(5, dtype=np.float16),
            "text": ["a", "bé", "", "d", "e"],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(10, dtype=np.float32)), 2),
            "words": pa.array([[1], [], [2, 3], [4], [5, 6, 7]], pa.list_(pa.int64())),
            "y": np.arange(5, dtype=np.float64),
            "z": [True, False, True, False, True],
        }
    )


def test_columns_keep_their_dtypes_and_shapes(table: pa.Table) -> None:
    plain = table.drop_columns(["words"])
    (features, labels), second, third = batches(plain, labels=("y",))
    assert features["number"].tolist() == [1, 2]
    assert features["number"].dtype == np.int32
    assert features["half"].dtype == np.float16
    assert features["text"].tolist() == [b"a", "bé".encode()]
    assert features["vector"].tolist() == [[0, 1], [2, 3]]
    assert features["z"].tolist() == [True, False]
    assert labels.tolist() == [0, 1]
    assert second[0]["number"].tolist() == [3, 4]
    assert third[0]["number"].tolist() == [5]


def test_lists_of_unequal_length_are_ragged(table: pa.Table) -> None:
    seen = [features["words"].to_list() for features, _ in batches(table.select(["words", "number"]))]
    assert seen == [[[1], []], [[2, 3], [4]], [[5, 6, 7]]]


def test_ragged_batches_have_a_static_rank(table: pa.Table) -> None:
    job = TrainJob(InPlace({}), RunConfig(), "unused", row_spec(table.select(["words", "vector"])), generation=1)
    with tf.Graph().as_default():
        feed = open_feed(job, UserCode(None), ModeKeys.TRAIN, lambda: iter(()))
    assert feed.features["words"].shape.as_list() == [None, None]
    assert feed.features["words"].flat_values.shape.as_list() == [None]
    assert feed.features["vector"].shape.as_list() == [None, 2]


def test_structs_are_dicts_of_features() -> None:
    users = [{"age": age, "seen": {"at": [age] * age}} for age in (1, 2, 3)]
    seen = [features["user"] for features, _ in batches(pa.table({"user": users}))]
    assert [user["age"].tolist() for user in seen] == [[1, 2], [3]]
    assert [user["seen"]["at"].to_list() for user in seen] == [[[1], [2, 2]], [[3, 3, 3]]]
    plain = [features["user"] for features, _ in batches(pa.table({"user": [{"age": age} for age in (1, 2, 3)]}))]
    assert [user["age"].tolist() for user in plain] == [[1, 2], [3]]


def test_several_labels_are_a_dict_and_predict_has_none(table: pa.Table) -> None:
    plain = table.drop_columns(["words"])
    _, labels = batches(plain, labels=("y", "z"))[0]
    assert labels["y"].tolist() == [0, 1]
    assert labels["z"].tolist() == [True, False]
    assert batches(plain, ModeKeys.PREDICT, labels=("y", "z"))[0][1] is None


def test_map_fn_parses_examples(table: pa.Table) -> None:
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    "x": tf.train.Feature(float_list=tf.train.FloatList(value=[number, 2 * number])),
                    "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
                }
            )
        ).SerializeToString()
        for number in range(5)
    ]

    def parse(features: Any, labels: Any) -> Any:
        assert labels is None
        spec = {"x": tf.io.FixedLenFeature([2], tf.float32), "y": tf.io.FixedLenFeature([], tf.int64)}
        parsed = tf.io.parse_example(features["bytes"], spec)
        return parsed, parsed.pop("y")

    seen = batches(pa.table({"bytes": pa.array(examples, pa.binary())}), map_fn=parse)
    assert [labels.tolist() for _, labels in seen] == [[0, 1], [2, 3], [4]]
    assert seen[1][0]["x"].tolist() == [[2, 4], [3, 6]]


def test_drop_remainder_acts_in_train_only(table: pa.Table) -> None:
    plain = table.select(["number"])
    assert len(batches(plain, drop_remainder=True)) == 2
    assert len(batches(plain, ModeKeys.EVAL, drop_remainder=True)) == 3


def test_the_tf_data_tuner_is_disabled(table: pa.Table) -> None:
    # On one CPU, closing a session may wait for the tuner.
    dataset, _ = dataset_of_rows(lambda: iter([table]), row_spec(table), None, ModeKeys.TRAIN)
    assert dataset.options().autotune.enabled is False


def test_the_tf_data_rewriting_is_disabled(table: pa.Table) -> None:
    # It takes as long as the rest of a range's start.
    dataset, _ = dataset_of_rows(lambda: iter([table]), row_spec(table), None, ModeKeys.TRAIN)
    assert dataset.options().experimental_optimization.apply_default_optimizations is False


@pytest.mark.parametrize("num_replicas", [1, 2])
@pytest.mark.parametrize("columns", [["number"], ["number", "words"]], ids=["dense", "ragged"])
def test_variables_keep_the_names_that_tf_data_uses_too(table: pa.Table, columns: list[str], num_replicas: int) -> None:
    names = ("count", "buffer_size", "batch_sizes", "drop_remainder", "components_0", "PyFunc", "Const", "strides")
    job = TrainJob(InPlace({}), RunConfig(), "unused", row_spec(table.select(columns)), generation=1)
    with tf.Graph().as_default():
        open_feed(job, UserCode(None), ModeKeys.TRAIN, lambda: iter(()), num_replicas=num_replicas)
        assert tuple(v1.get_variable(name, []).op.name for name in names) == names


# Passes


def chunks_of(closed: list[int]) -> Callable[[], Generator[list[Any]]]:
    """Passes of three chunks; each pass notes its number when it is closed."""
    passes = itertools.count(1)

    def chunks() -> Generator[list[Any]]:
        number = next(passes)
        try:
            for chunk in range(3):
                yield [np.array([number, chunk])]
        finally:
            closed.append(number)

    return chunks


def test_each_initialization_of_the_iterator_starts_at_the_first_row(table: pa.Table) -> None:
    job = TrainJob(InPlace({}), RunConfig(), "unused", row_spec(table.select(["number"])), generation=1)
    with tf.Graph().as_default(), v1.Session() as session:
        feed = open_feed(job, UserCode(None), ModeKeys.TRAIN, lambda: iter([table.slice(0, 4), table.slice(4)]))
        for num_batches in (1, 2, 3, 3):
            feed.hooks[0].after_create_session(session, None)
            seen = [session.run(feed.features)["number"].tolist() for _ in range(num_batches)]
            assert seen == [[1, 2], [3, 4], [5]][:num_batches]
        with pytest.raises(tf.errors.OutOfRangeError):
            session.run(feed.features)


def test_an_earlier_pass_takes_no_rows_of_a_newer_one() -> None:
    closed: list[int] = []
    reader = RowReader(chunks_of(closed))
    first = reader.start_pass()
    reader.next_chunk(first)
    second = reader.start_pass()
    assert closed == [1]
    with pytest.raises(StopIteration):
        reader.next_chunk(first)
    assert [reader.next_chunk(second)[0].tolist() for _ in range(3)] == [[2, 0], [2, 1], [2, 2]]
    with pytest.raises(StopIteration):
        reader.next_chunk(second)


def test_a_thread_that_is_reading_closes_the_pass_when_it_returns() -> None:
    is_reading, may_return, is_closed = threading.Event(), threading.Event(), threading.Event()

    def chunks() -> Generator[list[Any]]:
        try:
            is_reading.set()
            assert may_return.wait(30)
            yield [np.zeros(1)]
        finally:
            is_closed.set()

    reader = RowReader(chunks)
    thread = threading.Thread(target=reader.next_chunk, args=[reader.start_pass()])
    thread.start()
    assert is_reading.wait(30)
    reader.close()
    assert not is_closed.is_set()
    may_return.set()
    thread.join(30)
    assert is_closed.is_set()


def test_a_new_pass_forgets_the_error_of_the_one_before() -> None:
    def chunks() -> Generator[list[Any]]:
        yield from ()
        raise LookupError("no rows")

    reader = RowReader(chunks)
    with pytest.raises(LookupError):
        reader.next_chunk(reader.start_pass())
    assert isinstance(reader.error, LookupError)
    reader.start_pass()
    assert reader.error is None


def test_rows_come_in_order_with_deterministic_operations() -> None:
    program = """
import numpy as np, pyarrow as pa, tensorflow as tf
from ray_estimator import ModeKeys
from ray_estimator._data.columns import column_specs
from ray_estimator._engine.input.rows import RowReader, dataset_of_rows
from ray_estimator._jobs.jobs import RowSpec
tf.keras.utils.set_random_seed(1)
tf.config.experimental.enable_op_determinism()
table = pa.table({"x": np.arange(7)})
spec = RowSpec(column_specs(table.schema, ["x"]), {}, single_label=False, batch_size=3)
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    dataset, _ = dataset_of_rows(lambda: iter([table]), spec, None, ModeKeys.TRAIN)
    iterator = tf.compat.v1.data.make_initializable_iterator(dataset)
    batch = iterator.get_next()
    session.run(iterator.initializer)
    print([session.run(batch)["x"].tolist() for _ in range(3)])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "[[0, 1, 2], [3, 4, 5], [6]]", done.stderr


def test_the_memory_of_a_block_is_not_modified(table: pa.Table) -> None:
    values = np.arange(4, dtype=np.float32)
    values.flags.writeable = False
    shared = pa.table({"x": pa.array(values)})

    def square(features: Any, labels: Any) -> Any:
        return {"x": tf.square(features["x"]) + 1}

    batches(shared, map_fn=square, batch_size=4)
    assert values.tolist() == [0, 1, 2, 3]


def test_the_batch_dimension_is_found_in_any_feature() -> None:
    with tf.Graph().as_default():
        assert batch_dimension({"a": tf.zeros([]), "b": tf.zeros([7, 2])}) == 7
        unknown = batch_dimension(v1.placeholder(tf.float32, [None, 2]))
        assert isinstance(unknown, tf.Tensor)
        assert batch_dimension({"a": tf.zeros([])}) is None


def test_the_batch_dimension_is_found_without_v2_tensor_shapes(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(v1.enable_v2_tensorshape)
    v1.disable_v2_tensorshape()  # as tf.disable_v2_behavior() does
    with tf.Graph().as_default():
        assert batch_dimension(tf.zeros([7, 2])) == 7
        assert isinstance(batch_dimension(v1.placeholder(tf.float32, [None, 2])), tf.Tensor)


# Errors


def mean_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
    prediction = weight + tf.cast(features["x"], tf.float32)
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"p": prediction})
    loss = tf.reduce_mean(tf.square(prediction))
    train_op = v1.train.GradientDescentOptimizer(0.1).minimize(loss, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=loss, train_op=train_op)


def with_nulls() -> Iterator[pa.Table]:
    yield pa.table({"x": [1, 2]})
    yield pa.table({"x": [3, None]})


def too_late() -> Iterator[pa.Table]:
    yield pa.table({"x": [1, 2]})
    raise InputTimeoutError("Ray Data", 3.0)


@dataclass
class Rows:
    """`TrainingRows` that ignore the position."""

    tables: Callable[[], Iterator[pa.Table]]
    rows_per_epoch: int | None = None

    def tables_from(self, position: InputPosition) -> Callable[[], Iterator[pa.Table]]:
        return self.tables


CASES = [(with_nulls, ValueError, "'x'.*1 null"), (too_late, InputTimeoutError, "input_timeout_secs=3")]


@pytest.mark.parametrize(("tables", "kind", "text"), CASES, ids=["nulls", "timeout"])
@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "evaluate_range", "predict_range"])
def test_an_error_in_reading_rows_is_raised_unchanged(
    tmp_path: Path, tables: Callable[[], Any], kind: type[Exception], text: str, verb: str
) -> None:
    common = (InPlace({"model_fn": mean_model_fn}), RunConfig(), str(tmp_path), row_spec(pa.table({"x": [1, 2]})))

    def train() -> None:
        with hold(str(tmp_path), Storage(), on_loss=pytest.fail) as lease:
            source = InputSource({}, seed=None, endless=True)
            job = TrainJob(*common, generation=lease.generation, source=source)
            entrypoints.train(job, InlineWorker(Rows(tables)))

    run = {
        "train": train,
        "evaluate": lambda: entrypoints.evaluate(EvaluateJob(*common), tables),
        "predict": lambda: list(entrypoints.predict(PredictJob(*common), tables)),
        "evaluate_range": lambda: entrypoints.evaluate_range(EvaluateJob(*common), tables),
        "predict_range": lambda: entrypoints.predict_range(PredictJob(*common), tables),
    }
    with pytest.raises(kind, match=text):
        run[verb]()


def test_without_an_error_in_reading_tensorflows_error_is_raised() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError), Feed(None, None).explaining_errors():
        raise tf.errors.InvalidArgumentError(None, None, "from a kernel")


@pytest.mark.parametrize(("pause_secs", "lowest", "highest"), [(0.3, 0.5, 1.0), (0.0, 0.0, 0.5)])
def test_the_fraction_of_time_that_steps_wait_for_input_is_reported(
    tmp_path: Path, pause_secs: float, lowest: float, highest: float
) -> None:
    def tables() -> Iterator[pa.Table]:
        for _ in range(6):
            threading.Event().wait(pause_secs)
            yield pa.table({"x": [1, 2]})

    def slow_model_fn(features: Any, mode: str) -> EstimatorSpec:
        spec = mean_model_fn(features, None, mode)
        with tf.control_dependencies([spec.train_op]):
            pause = tf.numpy_function(lambda: threading.Event().wait(0.05), [], tf.bool)
        return spec._replace(train_op=tf.group(pause))

    with hold(str(tmp_path), Storage(), on_loss=pytest.fail) as lease:
        rows = row_spec(pa.table({"x": [1, 2]}))
        source = InputSource({}, seed=None, endless=False)
        code = InPlace({"model_fn": slow_model_fn})
        job = TrainJob(code, RunConfig(), str(tmp_path), rows, generation=lease.generation, source=source)
        worker = InlineWorker(Rows(tables))
        entrypoints.train(job, worker)
    assert worker.status.input_wait is not None
    assert lowest <= worker.status.input_wait <= highest
