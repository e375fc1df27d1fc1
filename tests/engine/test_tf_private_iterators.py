"""Private names of tf.data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf
from support.processes import session

from ray_estimator._tf_private import iterators

v1 = tf.compat.v1


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    """A new graph for each test."""
    with tf.Graph().as_default() as graph:
        yield graph


def test_restore_state_continues_where_another_iterator_was_saved(tmp_path: Path) -> None:
    dataset = tf.data.Dataset.range(20).shuffle(5, seed=3).batch(2).prefetch(1)
    first, second = (v1.data.make_initializable_iterator(dataset) for _ in range(2))
    take_first, take_second = first.get_next(), second.get_next()
    prefix = tf.constant(str(tmp_path / "state"))
    save = iterators.save_state(iterators.resource_of(first), prefix)
    restore = iterators.restore_state(iterators.resource_of(second), prefix)
    with session() as opened:
        opened.run([first.initializer, second.initializer])
        for _ in range(4):
            opened.run(take_first)
        opened.run(save)
        opened.run(restore)
        rest = [opened.run(take_first).tolist() for _ in range(6)]
        assert [opened.run(take_second).tolist() for _ in range(6)] == rest


def test_kernel_message_of_an_iterator_with_external_state(tmp_path: Path) -> None:
    dataset = tf.data.Dataset.range(9).map(lambda x: tf.numpy_function(abs, [x], tf.int64))
    iterator = v1.data.make_initializable_iterator(dataset)
    save = iterators.save_state(iterators.resource_of(iterator), tf.constant(str(tmp_path / "state")))
    with session() as opened:
        opened.run(iterator.initializer)
        with pytest.raises(tf.errors.FailedPreconditionError) as caught:
            opened.run(save)
    assert iterators.kernel_message(caught.value) == "PyFunc is stateful."


def test_fingerprint_distinguishes_pipelines_and_their_constants() -> None:
    def fingerprint(rows: list[int], batch_size: int) -> int:
        dataset = tf.data.Dataset.from_tensor_slices(rows).map(lambda x: x + 1).batch(batch_size)
        with session() as opened:
            return int(opened.run(iterators.fingerprint_of(dataset)))

    assert fingerprint([1, 2], 2) == fingerprint([1, 2], 2)
    assert len({fingerprint([1, 2], 2), fingerprint([1, 3], 2), fingerprint([1, 2], 3)}) == 3
