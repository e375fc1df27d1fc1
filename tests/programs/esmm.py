"""ESMM: predicts clicks on items and purchases after a click, trained on all impressions.

A custom Estimator with two towers over shared embeddings, from TFRecord files.
"""

import functools
import os
import sys

import numpy as np
import tensorflow as tf
from ray.train import ScalingConfig
from tensorflow import estimator, feature_column

tf.compat.v1.disable_eager_execution()

NUM_USERS, NUM_ITEMS = 40, 30
FEATURE_SPEC = {
    "user": tf.io.FixedLenFeature([1], tf.string),
    "item": tf.io.FixedLenFeature([1], tf.string),
    "viewed": tf.io.VarLenFeature(tf.string),
    "age": tf.io.FixedLenFeature([1], tf.float32),
}
LABEL_SPEC = {name: tf.io.FixedLenFeature([1], tf.float32, default_value=0.0) for name in ("click", "buy")}


def examples(num_examples, seed):
    rng, world = np.random.RandomState(seed), np.random.RandomState(4)
    likes = world.normal(size=(NUM_USERS, 2)) @ world.normal(size=(2, NUM_ITEMS))
    wealth, price = world.normal(size=NUM_USERS), world.normal(size=NUM_ITEMS)
    for _ in range(num_examples):
        user, item, age = rng.randint(NUM_USERS), rng.randint(NUM_ITEMS), rng.uniform(-1, 1)
        click = rng.uniform() < 1 / (1 + np.exp(-2 * likes[user, item] - age))
        buy = click and rng.uniform() < 1 / (1 + np.exp(-2 * (wealth[user] - price[item])))
        viewed = np.argsort(-likes[user] + 0.5 * rng.normal(size=NUM_ITEMS))[: rng.randint(4)]
        features = {"user": [f"user{user}"], "item": [f"item{item}"], "viewed": [f"item{i}" for i in viewed]}
        yield {**features, "age": [age], "click": [float(click)], "buy": [float(buy)]}


def serialized(example):
    def feature(values):
        if all(isinstance(value, str) for value in values):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode() for value in values]))
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    features = tf.train.Features(feature={name: feature(values) for name, values in example.items()})
    return tf.train.Example(features=features).SerializeToString()


def write_records(path, num_examples, seed):
    with tf.io.TFRecordWriter(path) as writer:
        for example in examples(num_examples, seed):
            writer.write(serialized(example))


def records_input_fn(pattern, batch_size, training, input_context=None):
    def parse(records):
        parsed = tf.io.parse_example(records, {**FEATURE_SPEC, **LABEL_SPEC})
        return parsed, {name: parsed.pop(name) for name in LABEL_SPEC}

    files = tf.data.Dataset.list_files(pattern, shuffle=training, seed=1)
    if input_context is not None:
        files = files.shard(input_context.num_input_pipelines, input_context.input_pipeline_id)
    dataset = files.interleave(tf.data.TFRecordDataset, cycle_length=2)
    if training:
        dataset = dataset.shuffle(2000, seed=1).repeat()
    return dataset.batch(batch_size).map(parse).prefetch(1)


class ESMM(estimator.Estimator):
    """Model P(buy) = P(click) * P(buy | click), each a network over the same embeddings."""

    def __init__(self, feature_columns, hidden_units, learning_rate, model_dir, config):
        def tower(net, name):
            with tf.compat.v1.variable_scope(name):
                for number, units in enumerate([*hidden_units, 1]):
                    with tf.compat.v1.variable_scope(f"layer{number}"):
                        net = tf.nn.relu(net) if number > 0 else net
                        kernel = tf.compat.v1.get_variable("kernel", [net.shape[1], units])
                        net = net @ kernel + tf.compat.v1.get_variable("bias", [units])
                return net

        def model_fn(features, labels, mode):
            net = tf.compat.v1.feature_column.input_layer(features, feature_columns)
            ctr, cvr = tf.sigmoid(tower(net, "ctr")), tf.sigmoid(tower(net, "cvr"))
            predictions = {"ctr": ctr, "cvr": cvr, "ctcvr": ctr * cvr}
            if mode == estimator.ModeKeys.PREDICT:
                outputs = {name: estimator.export.RegressionOutput(p) for name, p in predictions.items()}
                outputs["serving_default"] = estimator.export.PredictOutput(predictions)
                return estimator.EstimatorSpec(mode, predictions=predictions, export_outputs=outputs)

            tf.compat.v1.losses.log_loss(labels["click"], ctr)
            tf.compat.v1.losses.log_loss(labels["buy"], predictions["ctcvr"])
            loss = tf.compat.v1.losses.get_total_loss()
            if mode == estimator.ModeKeys.EVAL:
                metrics = {
                    "ctr_auc": tf.compat.v1.metrics.auc(labels["click"], ctr, num_thresholds=2000),
                    "ctcvr_auc": tf.compat.v1.metrics.auc(labels["buy"], predictions["ctcvr"], num_thresholds=2000),
                    "cvr": tf.compat.v1.metrics.mean(cvr, weights=labels["click"]),
                }
                return estimator.EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)
            optimizer = tf.compat.v1.train.AdamOptimizer(learning_rate)
            train_op = optimizer.minimize(loss, global_step=tf.compat.v1.train.get_global_step())
            return estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)

        super().__init__(model_fn=model_fn, model_dir=model_dir, config=config)


def build_feature_columns():
    user = feature_column.categorical_column_with_hash_bucket("user", 400)
    items = [f"item{i}" for i in range(NUM_ITEMS)]
    item, viewed = (feature_column.categorical_column_with_vocabulary_list(name, items) for name in ("item", "viewed"))
    shared = tf.compat.v1.feature_column.shared_embedding_columns([item, viewed], dimension=8)
    return [feature_column.embedding_column(user, dimension=8), *shared, feature_column.numeric_column("age")]


def higher_auc(best_eval_result, current_eval_result):
    return current_eval_result["ctcvr_auc"] > best_eval_result["ctcvr_auc"]


def main(work_dir, num_workers):
    for part in range(4):
        write_records(os.path.join(work_dir, f"train-{part}.tfrecord"), 2000, seed=part)
    write_records(os.path.join(work_dir, "test.tfrecord"), 2000, seed=9)
    config = estimator.RunConfig(
        tf_random_seed=1, save_checkpoints_steps=200, scaling_config=ScalingConfig(num_workers=num_workers)
    )
    model = ESMM(build_feature_columns(), [16], 0.01, os.path.join(work_dir, "model"), config)
    train_input_fn = functools.partial(records_input_fn, os.path.join(work_dir, "train-*"), 128, True)
    test_input_fn = functools.partial(records_input_fn, os.path.join(work_dir, "test.*"), 200, False)
    serving_fn = estimator.export.build_parsing_serving_input_receiver_fn(FEATURE_SPEC)
    exporters = [
        estimator.LatestExporter("latest", serving_fn, exports_to_keep=2),
        estimator.BestExporter("best", serving_fn, compare_fn=higher_auc, exports_to_keep=1),
    ]
    estimator.train_and_evaluate(
        model,
        estimator.TrainSpec(train_input_fn, max_steps=400),
        estimator.EvalSpec(test_input_fn, steps=None, exporters=exporters, start_delay_secs=0, throttle_secs=0),
    )
    metrics = model.evaluate(test_input_fn, name="last")
    rows = list(model.predict(test_input_fn))

    shown = list(examples(2000, seed=9))
    labels = {name: np.array([example[name][0] for example in shown]) for name in LABEL_SPEC}
    request = {"examples": [serialized(example) for example in shown]}
    latest = os.path.join(model.model_dir, "export", "latest")
    export_dir = os.path.join(latest, max(os.listdir(latest)))
    return {"metrics": metrics, "rows": rows, "labels": labels, "export_dir": export_dir, "request": request}


if __name__ == "__main__":
    result = main(work_dir=sys.argv[1], num_workers=int(sys.argv[2]))
