"""How the replicas of a training run make one model: alone, or under MultiWorkerMirroredStrategy.

The strategy starts this worker's gRPC server, so it is created first, eagerly, before any other TensorFlow call and
before user code is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine.distribution import sparse_gradients
from ray_estimator._engine.distribution.collectives import slot_for
from ray_estimator._engine.graph.input_barrier import depends_on_input
from ray_estimator._engine.tf_private import graphs, sessions
from ray_estimator._engine.tf_private import keras as keras_private
from ray_estimator._engine.tf_private import strategy as strategy_private
from ray_estimator._jobs.worker import Worker

CONTROL_SIZE = 4
"""How many elements the control vector of a step has."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Distribution(Protocol):
    """One replica in each process; `num_replicas` processes."""

    num_replicas: int
    master: str

    def scope(self) -> contextlib.AbstractContextManager[None]:
        """Variables made within belong to all replicas."""

    def prepare_global_step(self, global_step: tf.Variable) -> None:
        """Makes hooks on any rank read the global step without talking to the others."""

    def run_replica(self, build: Callable[[], T]) -> T:
        """Calls `build` in a thread of its own, as the replica of this process."""

    def sum_in_step(self, vector: tf.Tensor, train_op: tf.Operation) -> tf.Tensor:
        """The sum of a small float32 `vector` over all replicas, in each run of `train_op`."""

    def localize(self, variable: tf.Variable) -> tf.Variable:
        """This process's copy of a variable."""

    def session_config(self, config: v1.ConfigProto) -> v1.ConfigProto:
        """`config` made fit for this worker."""


class Alone:
    """One replica, no strategy."""

    num_replicas = 1
    master = ""

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Nothing to enter."""
        yield

    def prepare_global_step(self, global_step: tf.Variable) -> None:
        """Reads it where a step can be made to wait for the read."""
        sessions.read_global_step_plainly(global_step)

    def run_replica(self, build: Callable[[], T]) -> T:
        """Calls `build` in a thread whose Keras state is fresh."""
        graph = v1.get_default_graph()

        def in_graph() -> T:
            with graph.as_default():
                return build()

        return _in_fresh_thread(in_graph)

    def sum_in_step(self, vector: tf.Tensor, train_op: tf.Operation) -> tf.Tensor:
        """The vector itself."""
        return vector

    def localize(self, variable: tf.Variable) -> tf.Variable:
        """The variable itself."""
        return variable

    def session_config(self, config: v1.ConfigProto) -> v1.ConfigProto:
        """`config` as it is."""
        return config


class MultiWorker:
    """Several processes with one replica each, in one MultiWorkerMirroredStrategy."""

    def __init__(self, worker: Worker) -> None:
        cluster = {"worker": list(worker.addresses)}
        # The strategy's resolver reads this variable and nothing else.
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": worker.rank}})
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self.num_replicas = self._strategy.num_replicas_in_sync
        self.master = f"grpc://{worker.addresses[worker.rank]}"
        self._seats: list[strategy_private.AllReduceSlot] = []

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """The strategy's scope; optimizers average gradients within it."""
        with (
            self._strategy.scope(),
            strategy_private.averaging_v1_gradients(self._strategy),
            keras_private.averaging_keras_gradients(self.num_replicas),
        ):
            yield

    def prepare_global_step(self, global_step: tf.Variable) -> None:
        """Replaces the default read, which is a broadcast."""
        strategy_private.read_global_step_locally(self._strategy, global_step)

    def run_replica(self, build: Callable[[], T]) -> T:
        """Calls `build` in the strategy's replica thread."""
        # What crosses `call_for_each_replica` is regrouped by its type; the result stays out of it.
        results: list[T] = []
        # AutoGraph would rewrite model_fn, and its errors with it.
        replica = tf.autograph.experimental.do_not_convert(lambda: results.append(build()))
        with (
            strategy_private.slots_in_all_reduces(CONTROL_SIZE) as self._seats,
            strategy_private.packs_of_one_dtype(),
            strategy_private.reducing_slices(sparse_gradients.summed, sparse_gradients.NUM_SIZES),
            strategy_private.averaging_assigned_values(_differs_between_workers),
            strategy_private.naming_as_alone(),
        ):
            self._strategy.extended.call_for_each_replica(replica)
        return results[0]

    def sum_in_step(self, vector: tf.Tensor, train_op: tf.Operation) -> tf.Tensor:
        """A slot in an all-reduce of gradients, which costs nothing; else an all-reduce of its own."""
        slot = slot_for(vector, train_op, self._seats)
        if slot is not None:
            return slot.take(vector)
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, vector, axis=None)

    def localize(self, variable: tf.Variable) -> tf.Variable:
        """This worker's copy of a mirrored variable."""
        return self._strategy.experimental_local_results(variable)[0]

    def session_config(self, config: v1.ConfigProto) -> v1.ConfigProto:
        """`config` with this worker's collective settings."""
        return strategy_private.session_config(self._strategy, config)


def open_distribution(worker: Worker) -> Distribution:
    """Prepares this process's devices and joins its group. Runs on every worker, before all else."""
    _prepare_devices(worker.num_cpus)
    if len(worker.addresses) <= 1:
        return Alone()
    distribution = MultiWorker(worker)
    _require_one_replica_each(distribution, len(worker.addresses))
    return distribution


def _prepare_devices(num_cpus: int | None) -> None:
    """TensorFlow's threads follow the CPUs that were assigned; GPU memory grows as it is needed."""
    # In the caller's own process TensorFlow may be running already: its devices are the caller's business.
    with contextlib.suppress(RuntimeError):
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        if num_cpus is not None:
            tf.config.threading.set_intra_op_parallelism_threads(num_cpus)
            tf.config.threading.set_inter_op_parallelism_threads(max(2, num_cpus))


def _differs_between_workers(variable: tf.Variable, assigned: tf.Tensor) -> bool:
    """Whether workers assign different values to `variable` in a step, which they then average."""
    if not assigned.dtype.is_floating or not depends_on_input(assigned):
        return False
    if v1.get_default_graph().building_function or graphs.in_v1_control_flow(assigned.op):
        logger.warning("Each worker keeps what it assigns to %s in a branch or loop.", variable.name)
        return False
    logger.info("What model_fn assigns to %s depends on the batch: the workers average it.", variable.name)
    return True


def _require_one_replica_each(distribution: Distribution, num_workers: int) -> None:
    if distribution.num_replicas != num_workers:
        raise ValueError(
            f"Expected one replica for each of {num_workers} workers, but TensorFlow sees "
            f"{distribution.num_replicas} devices. Give each worker one GPU and raise num_workers instead."
        )


def _in_fresh_thread(build: Callable[[], T]) -> T:
    """Calls `build` in a new thread.

    Keras numbers its layers by thread: in a fresh one, TRAIN and EVAL give the same names, and the caller's own models
    are left alone.
    """
    outcome: list[Any] = []

    def target() -> None:
        try:
            outcome.extend((build(), None))
        except BaseException as error:
            outcome.extend((None, error))

    thread = threading.Thread(target=target, name="model_fn")
    thread.start()
    thread.join()
    result: T
    result, error = outcome
    if error is not None:
        raise error
    return result
