"""Two workers with batch B train what one does with batch 2B, whatever the optimizer, dense or embedding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from support.probes import NoteLosses, NoteOrder, note, notes

from ray_estimator import EstimatorSpec, dataset_input_fn
from ray_estimator._engine.distribution.strategy import CONTROL_SIZE

v1 = tf.compat.v1
pytestmark = pytest.mark.ray

STEPS = 8
GLOBAL_BATCH = 16

V1_OPTIMIZERS = {
    "sgd": lambda: v1.train.GradientDescentOptimizer(0.05),
    "momentum": lambda: v1.train.MomentumOptimizer(0.02, 0.9),
    "adam": lambda: v1.train.AdamOptimizer(0.02),
}
KERAS_OPTIMIZERS = {
    "keras_sgd": lambda: keras.optimizers.SGD(0.05),
    "keras_momentum": lambda: keras.optimizers.SGD(0.02, momentum=0.9),
    "keras_adam": lambda: keras.optimizers.Adam(0.02),
}


def tower_loss(features: Any, labels: Any) -> Any:
    """A dense layer and an embedding with sparse gradients, in the current variable scope."""
    table = v1.get_variable("embedding", [20, 3], initializer=v1.random_uniform_initializer(seed=3))
    kernel = v1.get_variable("kernel", [7, 1], initializer=v1.random_uniform_initializer(seed=4))
    embedded = tf.reduce_sum(tf.nn.embedding_lookup(table, features["ids"]), axis=1)
    prediction = tf.matmul(tf.concat([features["x"], embedded], axis=1), kernel)
    return tf.reduce_mean(tf.square(prediction[:, 0] - labels))


def keras_tower(features: Any, labels: Any, optimizer: Any) -> Any:
    """The same with Keras layers."""
    embedding = keras.layers.Embedding(20, 3, embeddings_initializer=keras.initializers.RandomUniform(seed=3))
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer=keras.initializers.RandomUniform(seed=4))
    embedded = tf.reduce_sum(embedding(features["ids"]), axis=1)
    prediction = dense(tf.concat([features["x"], embedded], axis=1))
    loss = tf.reduce_mean(tf.square(prediction[:, 0] - labels))
    variables = [*embedding.trainable_variables, *dense.trainable_variables]
    gradients = tf.gradients(loss, [variable.value for variable in variables])
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return loss


def towers_model_fn(features: Any, labels: Any, mode: str, config: Any, params: Any) -> EstimatorSpec:
    """One tower for each optimizer, each with weights and a loss of its own."""
    note(params["folder"], "config", [config.task_id, config.is_chief, config.num_worker_replicas, config.model_dir])
    losses, train_ops = [], []
    for name, make in V1_OPTIMIZERS.items():
        with v1.variable_scope(name):
            loss = tower_loss(features, labels)
        losses.append(loss)
        train_ops.append(make().minimize(loss, var_list=v1.trainable_variables(name)))
    losses += [keras_tower(features, labels, make()) for make in KERAS_OPTIMIZERS.values()]
    chief_hooks = [NoteLosses(params["folder"] + "/chief")]
    return EstimatorSpec(mode, loss=tf.add_n(losses), train_op=tf.group(*train_ops), training_chief_hooks=chief_hooks)


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    rng = np.random.default_rng(0)
    num_rows = STEPS * GLOBAL_BATCH
    return pa.table(
        {
            "x": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=num_rows * 4).astype("float32")), 4),
            "ids": pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 20, num_rows * 2)), 2),
            "y": rng.normal(size=num_rows).astype("float32"),
        }
    )


def weights_of(estimator: Any) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(estimator.latest_checkpoint())
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def test_two_workers_with_batch_b_equal_one_with_batch_2b(
    cluster: Any, on_ray: Callable[..., Any], in_process: Callable[..., Any], rows: pa.Table, tmp_path: Path
) -> None:
    dataset = cluster.data.from_arrow(rows).repartition(3).materialize()
    together, alone = tmp_path / "together", tmp_path / "alone"
    for folder in (together, alone):
        (folder / "chief").mkdir(parents=True)

    pair = on_ray(towers_model_fn, 2, params={"folder": str(together)}, model_dir=tmp_path / "pair")
    hooks = [partial(NoteLosses, str(together)), partial(NoteOrder, str(together))]
    pair.train(dataset_input_fn(dataset, batch_size=GLOBAL_BATCH // 2, label_columns="y"), steps=STEPS, hooks=hooks)

    single = in_process(towers_model_fn, params={"folder": str(alone)}, model_dir=tmp_path / "single")
    hooks = [NoteLosses(str(alone))]
    single.train(dataset_input_fn(dataset, batch_size=GLOBAL_BATCH, label_columns="y"), steps=STEPS, hooks=hooks)

    ours, theirs = weights_of(pair), weights_of(single)
    assert ours.keys() == theirs.keys()
    assert {"sgd/kernel", "momentum/embedding/Momentum", "adam/embedding/Adam_1"} <= ours.keys()
    for name in sorted(ours):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-6, err_msg=name)
    assert any(np.abs(ours[name] - 0.0).max() > 1e-3 for name in ours if "keras" not in name)

    # The loss reported is the mean over the ranks, on every rank.
    losses = notes(together, "loss")
    assert losses[0] == losses[1]
    np.testing.assert_allclose(losses[0], notes(alone, "loss")[0], atol=1e-5)

    # All ranks hold equal weights at the end.
    digests = notes(together, "weights")
    assert digests[0] == digests[1]

    # One total order of the collectives of a step, gathers of embedding gradients included, the same everywhere.
    order = notes(together, "order")
    assert order[0] == order[1]
    (seen,) = order[0]
    assert len([kind for kind in seen["types"] if "Gather" in kind]) >= 2
    assert len(seen["follows"]) >= 3
    assert all(seen["follows"])
    # What the ranks tell each other rides along with gradients: no all-reduce is for the control vector alone.
    assert len(seen["reduced"]) == len(V1_OPTIMIZERS) + len(KERAS_OPTIMIZERS)
    assert CONTROL_SIZE not in seen["reduced"]

    # RunConfig is right inside workers, and chief hooks run on the chief alone.
    assert notes(together, "config")[0] == [[0, True, 2, pair.model_dir]]
    assert notes(together, "config")[1] == [[1, False, 2, pair.model_dir]]
    assert set(notes(together / "chief", "loss")) == {0}
