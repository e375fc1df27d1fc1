"""The distribution of a training run: a single process, or several under MultiWorkerMirroredStrategy.

The strategy starts this worker's gRPC server, so it is created eagerly before any other TensorFlow call and before user
code is deserialized.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Protocol, TypeVar

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine.distribution import sparse_gradients
from ray_estimator._engine.distribution.collectives import slot_for
from ray_estimator._engine.graph.input_barrier import depends_on_input
from ray_estimator._jobs.worker import Worker
from ray_estimator._tf_private import distribute
from ray_estimator._tf_private.graphs import in_v1_control_flow
from ray_estimator._tf_private.keras import averaging_keras_gradients
from ray_estimator._tf_private.sessions import add_global_step_read

CONTROL_SIZE = 4
"""Number of elements in the control vector of a step."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Distribution(Protocol):
    """`num_replicas` processes with one replica each."""

    num_replicas: int
    master: str

    def scope(self) -> contextlib.AbstractContextManager[None]:
        """Return a scope whose variables belong to all replicas."""

    def prepare_global_step(self, global_step: tf.Variable) -> None:
        """Make hooks read the global step without communication between ranks."""

    def run_replica(self, build: Callable[[], T]) -> T:
        """Call `build` in a separate thread, as the replica of this process."""

    def sum_in_step(self, vector: tf.Tensor, train_op: tf.Operation) -> tf.Tensor:
        """Return the sum of a small float32 `vector` over all replicas, computed in each run of `train_op`."""

    def localize(self, variable: tf.Variable) -> tf.Variable:
        """Return this process's copy of a variable."""

    def session_config(self, config: v1.ConfigProto) -> v1.ConfigProto:
        """Return `config` with the settings of this worker."""


class SingleWorker:
    """A single replica without a strategy."""

    num_replicas = 1
    master = ""

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Return an empty scope."""
        yield

    def prepare_global_step(self, global_step: tf.Variable) -> None:
        """Create the read now, so that it can be ordered before the step."""
        add_global_step_read(global_step)

    def run_replica(self, build: Callable[[], T]) -> T:
        """Call `build` in a thread with fresh Keras state."""
        graph = v1.get_default_graph()

        def in_graph() -> T:
            with graph.as_default():
                return build()

        return _in_new_thread(in_graph)

    def sum_in_step(self, vector: tf.Tensor, train_op: tf.Operation) -> tf.Tensor:
        """Return the vector."""
        return vector

    def localize(self, variable: tf.Variable) -> tf.Variable:
        """Return the variable."""
        return variable

    def session_config(self, config: v1.ConfigProto) -> v1.ConfigProto:
        """Return `config` unchanged."""
        return config


class MultiWorker:
    """Several processes with one replica each, under one MultiWorkerMirroredStrategy."""

    def __init__(self, worker: Worker) -> None:
        cluster = {"worker": list(worker.addresses)}
        # The strategy's resolver reads only this variable.
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": worker.rank}})
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self.num_replicas = self._strategy.num_replicas_in_sync
        self.master = f"grpc://{worker.addresses[worker.rank]}"
        self._slots: list[distribute.AllReduceSlot] = []

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Return the strategy's scope, in which optimizers average gradients."""
        with (
            self._strategy.scope(),
            distribute.averaging_v1_gradients(self._strategy),
            averaging_keras_gradients(self.num_replicas),
        ):
            yield

    def prepare_global_step(self, global_step: tf.Variable) -> None:
        """Replace the default read, which is a broadcast."""
        distribute.read_global_step_locally(self._strategy, global_step)

    def run_replica(self, build: Callable[[], T]) -> T:
        """Call `build` in the strategy's replica thread."""
        # `call_for_each_replica` regroups what a replica returns, so the result is passed outside of it.
        results: list[T] = []
        # AutoGraph would rewrite model_fn and change its errors.
        replica = tf.autograph.experimental.do_not_convert(lambda: results.append(build()))
        with (
            distribute.adding_all_reduce_slots(CONTROL_SIZE) as self._slots,
            distribute.packs_of_one_dtype(),
            distribute.reducing_slices(sparse_gradients.summed, sparse_gradients.NUM_SIZES),
            distribute.averaging_assigned_values(_differs_between_workers),
            distribute.single_process_names(),
        ):
            self._strategy.extended.call_for_each_replica(replica)
        return results[0]

    def sum_in_step(self, vector: tf.Tensor, train_op: tf.Operation) -> tf.Tensor:
        """Return the sum from a slot in an all-reduce of gradients, or from a separate all-reduce if no slot fits."""
        slot = slot_for(vector, train_op, self._slots)
        if slot is not None:
            return slot.fill(vector)
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, vector, axis=None)

    def localize(self, variable: tf.Variable) -> tf.Variable:
        """Return this worker's copy of a mirrored variable."""
        return self._strategy.experimental_local_results(variable)[0]

    def session_config(self, config: v1.ConfigProto) -> v1.ConfigProto:
        """Return `config` with this worker's collective settings."""
        return distribute.session_config(self._strategy, config)


def open_distribution(worker: Worker) -> Distribution:
    """Configure this process's devices and join the group of `worker`. Runs first on every worker."""
    _configure_devices(worker.num_cpus)
    if len(worker.addresses) <= 1:
        return SingleWorker()
    distribution = MultiWorker(worker)
    _require_one_replica_each(distribution, len(worker.addresses))
    return distribution


def _configure_devices(num_cpus: int | None) -> None:
    """Match TensorFlow's threads to the assigned CPUs, and let GPU memory grow on demand."""
    # In the driver's process TensorFlow may be initialized already, and raises RuntimeError: its settings are kept.
    with contextlib.suppress(RuntimeError):
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        if num_cpus is not None:
            tf.config.threading.set_intra_op_parallelism_threads(num_cpus)
            tf.config.threading.set_inter_op_parallelism_threads(max(2, num_cpus))


def _differs_between_workers(variable: tf.Variable, assigned: tf.Tensor) -> bool:
    """Return whether the value assigned to `variable` differs between workers, so that it has to be averaged."""
    if not assigned.dtype.is_floating or not depends_on_input(assigned):
        return False
    if v1.get_default_graph().building_function or in_v1_control_flow(assigned.op):
        logger.warning("Values assigned to %s in a branch or loop are not averaged over the workers.", variable.name)
        return False
    logger.info("Averaging the values of %s over the workers, because they depend on the batch.", variable.name)
    return True


def _require_one_replica_each(distribution: Distribution, num_workers: int) -> None:
    if distribution.num_replicas != num_workers:
        raise ValueError(
            f"Each worker must have one device, got {distribution.num_replicas} devices on {num_workers} workers. "
            "Give each worker one GPU and increase num_workers."
        )


def _in_new_thread(build: Callable[[], T]) -> T:
    """Call `build` in a new thread and return its result.

    Keras numbers layers per thread. In a new thread, layer names are the same in TRAIN and EVAL and do not affect the
    caller's own models.
    """
    outcome: Future[T] = Future()

    def target() -> None:
        try:
            outcome.set_result(build())
        except BaseException as error:  # Raised again in the caller's thread.
            outcome.set_exception(error)

    thread = threading.Thread(target=target, name="model_fn")
    thread.start()
    thread.join()
    return outcome.result()
