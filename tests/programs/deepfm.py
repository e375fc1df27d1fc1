"""DeepFM: predicts clicks on advertisements from libsvm files of feature ids and values.

A factorization machine and a network share the embeddings of the features.
"""

import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from ray.train import ScalingConfig

FIELD_SIZE = 4
VALUES_PER_FIELD = 10


def write_libsvm(path, num_rows, seed):
    """Generate clicks that depend on combinations of two fields, not on single fields."""
    rng = np.random.RandomState(seed)
    taste = np.random.RandomState(3).normal(size=(FIELD_SIZE, VALUES_PER_FIELD, 2))
    ids = rng.randint(VALUES_PER_FIELD, size=(num_rows, FIELD_SIZE))
    vectors = taste[np.arange(FIELD_SIZE), ids]
    score = (vectors[:, 0] * vectors[:, 1]).sum(axis=1) + (vectors[:, 2] * vectors[:, 3]).sum(axis=1)
    labels = (rng.uniform(size=num_rows) < 1 / (1 + np.exp(-3 * score))).astype(int)
    feature_ids = ids + np.arange(FIELD_SIZE) * VALUES_PER_FIELD
    with open(path, "w") as lines:
        for label, row in zip(labels, feature_ids, strict=True):
            feat = " ".join(f"{feature}:1.0" for feature in row)
            lines.write(f"{label} {feat}\n")
    return labels, feature_ids


def input_fn(filenames, batch_size=32, num_epochs=1, perform_shuffle=False):
    def decode_libsvm(line):
        columns = tf.string_split([line], " ")
        label = tf.string_to_number(columns.values[0], out_type=tf.float32)
        splits = tf.string_split(columns.values[1:], ":")
        id_vals = tf.reshape(splits.values, splits.dense_shape)
        feat_ids, feat_vals = tf.split(id_vals, num_or_size_splits=2, axis=1)
        feat_ids = tf.string_to_number(feat_ids, out_type=tf.int32)
        feat_vals = tf.string_to_number(feat_vals, out_type=tf.float32)
        return {"feat_ids": feat_ids, "feat_vals": feat_vals}, label

    dataset = tf.data.TextLineDataset(filenames).map(decode_libsvm, num_parallel_calls=2).prefetch(1000)
    if perform_shuffle:
        dataset = dataset.shuffle(buffer_size=1000)
    dataset = dataset.repeat(num_epochs).batch(batch_size)
    iterator = tf.data.make_one_shot_iterator(dataset)
    batch_features, batch_labels = iterator.get_next()
    return batch_features, batch_labels


def fully_connected(inputs, units, scope):
    with tf.variable_scope(scope):
        kernel = tf.get_variable("weights", [inputs.shape[1], units], initializer=tf.glorot_uniform_initializer())
        bias = tf.get_variable("biases", [units], initializer=tf.zeros_initializer())
        return tf.matmul(inputs, kernel) + bias


def model_fn(features, labels, mode, params):
    field_size, feature_size, k = params["field_size"], params["feature_size"], params["embedding_size"]
    fm_bias = tf.get_variable("fm_bias", [1], initializer=tf.constant_initializer(0.0))
    fm_w = tf.get_variable("fm_w", [feature_size], initializer=tf.glorot_normal_initializer())
    fm_v = tf.get_variable("fm_v", [feature_size, k], initializer=tf.glorot_normal_initializer())
    feat_ids = tf.reshape(features["feat_ids"], [-1, field_size])
    feat_vals = tf.reshape(features["feat_vals"], [-1, field_size])

    with tf.variable_scope("first_order"):
        y_w = tf.reduce_sum(tf.nn.embedding_lookup(fm_w, feat_ids) * feat_vals, 1)
    with tf.variable_scope("second_order"):
        embeddings = tf.nn.embedding_lookup(fm_v, feat_ids) * tf.reshape(feat_vals, [-1, field_size, 1])
        sum_square = tf.square(tf.reduce_sum(embeddings, 1))
        square_sum = tf.reduce_sum(tf.square(embeddings), 1)
        y_v = 0.5 * tf.reduce_sum(sum_square - square_sum, 1)
    with tf.variable_scope("deep"):
        deep_inputs = tf.reshape(embeddings, [-1, field_size * k])
        for i, units in enumerate(params["deep_layers"]):
            deep_inputs = tf.nn.relu(fully_connected(deep_inputs, units, f"mlp{i}"))
            if mode == tf.estimator.ModeKeys.TRAIN:
                deep_inputs = tf.nn.dropout(deep_inputs, rate=params["dropout"])
        y_d = tf.reshape(fully_connected(deep_inputs, 1, "deep_out"), [-1])
    y = fm_bias * tf.ones_like(y_d) + y_w + y_v + y_d
    pred = tf.sigmoid(y)

    predictions = {"prob": pred}
    signature = tf.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY
    export_outputs = {signature: tf.estimator.export.PredictOutput(predictions)}
    if mode == tf.estimator.ModeKeys.PREDICT:
        return tf.estimator.EstimatorSpec(mode=mode, predictions=predictions, export_outputs=export_outputs)

    l2 = params["l2_reg"] * (tf.nn.l2_loss(fm_w) + tf.nn.l2_loss(fm_v))
    loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(logits=y, labels=labels)) + l2
    eval_metric_ops = {"auc": tf.metrics.auc(labels, pred, num_thresholds=2000)}
    if mode == tf.estimator.ModeKeys.EVAL:
        return tf.estimator.EstimatorSpec(
            mode=mode, predictions=predictions, loss=loss, eval_metric_ops=eval_metric_ops
        )

    optimizer = tf.train.AdamOptimizer(learning_rate=params["learning_rate"], beta1=0.9, beta2=0.999, epsilon=1e-8)
    train_op = optimizer.minimize(loss, global_step=tf.train.get_global_step())
    return tf.estimator.EstimatorSpec(mode=mode, predictions=predictions, loss=loss, train_op=train_op)


def main(work_dir, num_workers):
    tr_files, te_files = os.path.join(work_dir, "tr.libsvm"), os.path.join(work_dir, "te.libsvm")
    write_libsvm(tr_files, 6000, seed=1)
    labels, feature_ids = write_libsvm(te_files, 2000, seed=2)
    model_params = {
        "field_size": FIELD_SIZE, "feature_size": FIELD_SIZE * VALUES_PER_FIELD, "embedding_size": 8,
        "learning_rate": 0.01, "l2_reg": 1e-4, "deep_layers": [16, 8], "dropout": 0.2,
    }  # fmt: skip
    config = tf.estimator.RunConfig().replace(
        session_config=tf.ConfigProto(device_count={"GPU": 0, "CPU": 2}, allow_soft_placement=True),
        tf_random_seed=1, log_step_count_steps=100, save_summary_steps=100,
        scaling_config=ScalingConfig(num_workers=num_workers),
    )  # fmt: skip
    deepfm = tf.estimator.Estimator(
        model_fn=model_fn, model_dir=os.path.join(work_dir, "model"), params=model_params, config=config
    )
    deepfm.train(input_fn=lambda: input_fn([tr_files], num_epochs=None, batch_size=64, perform_shuffle=True), steps=400)
    metrics = deepfm.evaluate(input_fn=lambda: input_fn([te_files], batch_size=100))
    preds = deepfm.predict(input_fn=lambda: input_fn([te_files], batch_size=100), predict_keys="prob")
    rows = list(preds)
    feature_spec = {
        "feat_ids": tf.placeholder(dtype=tf.int32, shape=[None, FIELD_SIZE], name="feat_ids"),
        "feat_vals": tf.placeholder(dtype=tf.float32, shape=[None, FIELD_SIZE], name="feat_vals"),
    }
    serving_input_receiver_fn = tf.estimator.export.build_raw_serving_input_receiver_fn(feature_spec)
    export_dir = deepfm.export_savedmodel(os.path.join(work_dir, "servable"), serving_input_receiver_fn)
    request = {"feat_ids": feature_ids.astype(np.int32), "feat_vals": np.ones(feature_ids.shape, np.float32)}
    return {"metrics": metrics, "rows": rows, "labels": labels, "export_dir": export_dir, "request": request}


if __name__ == "__main__":
    tf.disable_v2_behavior()
    result = main(work_dir=sys.argv[1], num_workers=int(sys.argv[2]))
