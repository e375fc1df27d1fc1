"""A worker of the peer in `two_workers.py`: MultiWorkerMirroredStrategy in a tf.function, one step per call.

One of two plain processes started with TF_CONFIG; they take turns with the other program.

    TF_CONFIG=... python _tf_function_worker.py FOLDER PLACE PROGRAMS ROUNDS BLOCK_STEPS
"""

from __future__ import annotations

import sys

import tensorflow as tf
from _side_by_side import Turn


def main(folder: str, place: int, programs: int, rounds: int, block_steps: int) -> None:
    # The same number of threads as our workers get from one Ray CPU.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        weight = tf.Variable(0.0)
        global_step = tf.Variable(0, dtype=tf.int64)
    batches = iter(tf.data.Dataset.from_tensors(([1.0], [2.0])).repeat())

    def replica_step(features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(features * weight - labels))
        gradient = tape.gradient(loss, weight)
        replica = tf.distribute.get_replica_context()
        weight.assign_sub(1e-3 * replica.all_reduce(tf.distribute.ReduceOp.MEAN, gradient))
        global_step.assign_add(1)
        return loss

    @tf.function  # type: ignore[untyped-decorator]
    def step() -> tf.Tensor:
        losses = strategy.run(replica_step, args=next(batches))
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, losses, axis=None)

    leads = strategy.cluster_resolver.task_id == 0
    turn = Turn(folder, place, programs, rounds, leads=leads)
    for _ in range(1 + rounds):
        for _ in range(block_steps):
            float(step())
        turn.lap()


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
