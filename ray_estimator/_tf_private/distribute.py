"""Private names of tf.distribute: gradients, all-reduces, the global step and the session config of a strategy."""

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
    """Make v1 optimizers divide the loss by the number of replicas, as in tf.estimator."""
    scope: contextlib.AbstractContextManager[None] = strategy._scale_loss_for_estimator_enabled()
    return scope


def session_config(strategy: tf.distribute.Strategy, config: v1.ConfigProto) -> v1.ConfigProto:
    """Return `config` with the collective leader and the device filters of this worker."""
    return strategy.extended._update_config_proto(config)


def read_global_step_locally(strategy: tf.distribute.Strategy, global_step: tf.Variable) -> None:
    """Make hooks read this worker's copy of the global step.

    The default read depends on the variable's initial value, which is a broadcast. Running it on one rank only, as a
    hook does, would abort the collectives.
    """
    v1.add_to_collection(training_util.GLOBAL_STEP_READ_KEY, strategy.extended.read_var(global_step))


@dataclass(frozen=True)
class AllReduceSlot:
    """A slot for a small vector in an all-reduce of the model.

    Attributes:
        op: Identity operation whose output is all-reduced; its input is zeros until `fill` is called.
        total: Sum of the slot over the workers.
    """

    op: tf.Operation
    total: tf.Tensor

    def fill(self, vector: tf.Tensor) -> tf.Tensor:
        """Put `vector` into the slot and return its sum. Call before a session has run the graph."""
        self.op._update_input(0, vector)
        return self.total


@contextlib.contextmanager
def adding_all_reduce_slots(size: int) -> Iterator[list[AllReduceSlot]]:
    """Add a slot of `size` elements to each packed float32 all-reduce of the default graph."""
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
    """A function that concatenates equally shaped tensors of the workers along their first dimension."""

    def __call__(self, tensor: tf.Tensor, size: tf.Tensor | None) -> tf.Tensor:
        """Gather `tensor`. `size` is the number of its shape; None if the shape is the same in every step."""


@contextlib.contextmanager
def reducing_slices(reduce: Callable[[tf.IndexedSlices, Gather], tf.IndexedSlices], num_sizes: int) -> Iterator[None]:
    """All-reduce gradients that are IndexedSlices by ``reduce(slices, gather)``.

    Args:
        reduce: Function that returns the slices of all workers from those of this worker.
        num_sizes: Number of shapes that a gathered tensor can have.
    """
    launcher = cross_device_utils.CollectiveReplicaLauncher
    plain = launcher.all_reduce_indexed_slices

    def reducing(self: Any, slices: tf.IndexedSlices, options: Any = None) -> tf.IndexedSlices:
        options = self._options.merge(options)

        def gather(tensor: tf.Tensor, size: tf.Tensor | None) -> tf.Tensor:
            # In a session a key identifies one collective, which has the same shape in every step.
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
    """Split packs of gradients by dtype before an all-reduce; TensorFlow fails to concatenate several dtypes."""
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
    """Average the values that replicas assign to a mirrored variable without aggregation, if `wanted` returns True.

    By default each replica keeps its own value, and the value of one replica is saved.
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
def single_process_names() -> Iterator[None]:
    """Give the variables of v1 optimizers the names that they have without a strategy.

    By default TensorFlow enters the name scope of the current variable scope a second time.
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
