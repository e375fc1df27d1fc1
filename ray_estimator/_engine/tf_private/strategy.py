"""Every private name of tf.distribute that the engine leans on, each behind a function with a public meaning.

An upgrade that moves one of them shows in `tests/engine/test_strategy_internals.py`, one test for each.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf
import tensorflow.compat.v1 as v1
from tensorflow.python.distribute import cross_device_utils, mirrored_run, values
from tensorflow.python.ops import collective_ops
from tensorflow.python.training import training_util


def averaging_v1_gradients(strategy: tf.distribute.Strategy) -> contextlib.AbstractContextManager[None]:
    """Within it, v1 optimizers divide the loss by the number of replicas, as under tf.estimator."""
    scope: contextlib.AbstractContextManager[None] = strategy._scale_loss_for_estimator_enabled()
    return scope


def session_config(strategy: tf.distribute.Strategy, config: v1.ConfigProto) -> v1.ConfigProto:
    """`config` with the collective leader and the device filters of this worker."""
    return strategy.extended._update_config_proto(config)


def read_global_step_locally(strategy: tf.distribute.Strategy, global_step: tf.Variable) -> None:
    """Makes hooks read the global step of this worker.

    The default read carries the variable's initial value, which is a broadcast: hooks on one rank alone would
    abort the collectives.
    """
    v1.add_to_collection(training_util.GLOBAL_STEP_READ_KEY, strategy.extended.read_var(global_step))


@dataclass(frozen=True)
class AllReduceSlot:
    """Room for a small vector in an all-reduce that the model makes anyway.

    Attributes:
        op: What the all-reduce takes the vector from; zeros until it is taken.
        total: The vector's sum over the workers.
    """

    op: tf.Operation
    total: tf.Tensor

    def take(self, vector: tf.Tensor) -> tf.Tensor:
        """Sends `vector` along; gives its sum. Call before any session has run the graph."""
        self.op._update_input(0, vector)
        return self.total


@contextlib.contextmanager
def slots_in_all_reduces(size: int) -> Iterator[list[AllReduceSlot]]:
    """Within it, each packed float32 all-reduce of the default graph has a slot for `size` elements more."""
    launcher = cross_device_utils.CollectiveReplicaLauncher
    graph, plain, slots = v1.get_default_graph(), launcher.batch_all_reduce, list[AllReduceSlot]()

    def with_slot(self: Any, packs: Sequence[Sequence[tf.Tensor]], options: Any = None) -> list[tf.Tensor]:
        here = v1.get_default_graph() is graph and graph._get_control_flow_context() is None
        first = packs[0]
        if not here or any(tensor.dtype != tf.float32 for tensor in first):
            reduced: list[tf.Tensor] = plain(self, packs, options)
            return reduced
        slot = tf.identity(tf.zeros([size]), name="control/slot")
        reduced = plain(self, [[*first, slot], *packs[1:]], options)
        slots.append(AllReduceSlot(slot.op, reduced.pop(len(first))))
        return reduced

    launcher.batch_all_reduce = with_slot
    try:
        yield slots
    finally:
        launcher.batch_all_reduce = plain


class Gather(Protocol):
    """Joins tensors of the workers, of equal shape everywhere, along their first dimension."""

    def __call__(self, tensor: tf.Tensor, size: tf.Tensor | None) -> tf.Tensor:
        """Gathers `tensor`; `size` is the number of its shape, None if it has the same shape in every step."""


@contextlib.contextmanager
def reducing_slices(reduce: Callable[[tf.IndexedSlices, Gather], tf.IndexedSlices], num_sizes: int) -> Iterator[None]:
    """Within it, gradients that are IndexedSlices are all-reduced by ``reduce(slices, gather)``.

    Args:
        reduce: Makes the slices of all workers of those of one.
        num_sizes: How many shapes a tensor that is gathered may have, each by its number.
    """
    launcher = cross_device_utils.CollectiveReplicaLauncher
    plain = launcher.all_reduce_indexed_slices

    def reducing(self: Any, slices: tf.IndexedSlices, options: Any = None) -> tf.IndexedSlices:
        options = self._options.merge(options)

        def gather(tensor: tf.Tensor, size: tf.Tensor | None) -> tf.Tensor:
            # In a session a key means the same collective, of the same shape, in every step.
            keys = [self._next_instance_key() for _ in range(1 if size is None else num_sizes)]
            return collective_ops.all_gather_v2(
                tensor,
                self._group_size,
                self._group_key,
                keys[0] if size is None else keys[0] + size,
                communication_hint=options.implementation.value,
                timeout=options.timeout_seconds,
                ordering_token=self._get_ordering_token(),
            )

        with tf.device(self._device):
            return reduce(slices, gather)

    launcher.all_reduce_indexed_slices = reducing
    try:
        yield
    finally:
        launcher.all_reduce_indexed_slices = plain


@contextlib.contextmanager
def packs_of_one_dtype() -> Iterator[None]:
    """Within it, gradients of several dtypes can be all-reduced together: TensorFlow would concatenate them."""
    launcher = cross_device_utils.CollectiveReplicaLauncher
    plain = launcher.batch_all_reduce

    def by_dtype(self: Any, packs: Sequence[Sequence[tf.Tensor]], options: Any = None) -> list[tf.Tensor]:
        split = [[t for t in pack if t.dtype == dtype] for pack in packs for dtype in {t.dtype: None for t in pack}]
        reduced = dict(zip(map(id, itertools.chain(*split)), plain(self, split, options), strict=True))
        return [reduced[id(tensor)] for tensor in itertools.chain(*packs)]

    launcher.batch_all_reduce = by_dtype
    try:
        yield
    finally:
        launcher.batch_all_reduce = plain


@contextlib.contextmanager
def averaging_assigned_values(wanted: Callable[[tf.Variable, tf.Tensor], bool]) -> Iterator[None]:
    """Within it, what replicas assign to a mirrored variable that says nothing of aggregation is averaged if `wanted`.

    Unhelped each replica would keep its own value, and one of them would be saved.
    """
    plain = values._on_write_update_replica

    def averaging(variable: Any, update: Any, value: Any, **kwargs: Any) -> Any:
        if variable.aggregation == tf.VariableAggregation.NONE and tf.is_tensor(value) and wanted(variable, value):
            value = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, value)
        return plain(variable, update, value, **kwargs)

    values._on_write_update_replica = averaging
    try:
        yield
    finally:
        values._on_write_update_replica = plain


@contextlib.contextmanager
def naming_as_alone() -> Iterator[None]:
    """Within it, what v1 optimizers make for all replicas has the names that it has in a process alone.

    Unhelped TensorFlow opens the name scope of the current variable scope a second time.
    """
    plain = mirrored_run.variable_scope

    class Scopes:
        def __getattr__(self, name: str) -> Any:
            return getattr(plain, name)

        def variable_scope(self, scope: Any, **kwargs: Any) -> Any:
            return plain.variable_scope(scope, auxiliary_name_scope=False, **kwargs)

    mirrored_run.variable_scope = Scopes()
    try:
        yield
    finally:
        mirrored_run.variable_scope = plain
