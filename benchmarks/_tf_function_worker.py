"""A worker of the peer in `two_workers.py`: MultiWorkerMirroredStrategy in a tf.function, one step a call.

A plain process, started with TF_CONFIG. Prints the seconds a step takes between two steps.

    TF_CONFIG=... python _tf_function_worker.py FIRST LAST THREADS
"""

from __future__ import annotations

import sys
import time

import tensorflow as tf


def main(first: int, last: int, threads: int) -> None:
    if threads:
        # As many as Ray's one CPU gives to ours.
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))
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

    @tf.function
    def step() -> tf.Tensor:
        losses = strategy.run(replica_step, args=next(batches))
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, losses, axis=None)

    for number in range(1, last + 1):
        float(step())
        if number == first:
            began = time.perf_counter()
    print((time.perf_counter() - began) / (last - first))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
