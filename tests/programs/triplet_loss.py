"""Embeddings of handwritten digits with the triplet loss over all triplets of a batch."""

import argparse
import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from ray.train import ScalingConfig
from sklearn.datasets import load_digits


def pairwise_distances(embeddings):
    """Return the squared distances between all embeddings, of shape (batch_size, batch_size)."""
    dot_product = tf.matmul(embeddings, embeddings, transpose_b=True)
    square_norm = tf.diag_part(dot_product)
    distances = tf.expand_dims(square_norm, 1) - 2.0 * dot_product + tf.expand_dims(square_norm, 0)
    return tf.maximum(distances, 0.0)


def triplet_mask(labels):
    """Return whether (anchor, positive, negative) is a triplet, of shape (batch_size, batch_size, batch_size)."""
    same = tf.equal(tf.expand_dims(labels, 0), tf.expand_dims(labels, 1))
    other_place = tf.logical_not(tf.cast(tf.eye(tf.shape(labels)[0]), tf.bool))
    positive = tf.expand_dims(tf.logical_and(same, other_place), 2)
    return tf.logical_and(positive, tf.expand_dims(tf.logical_not(same), 1))


def batch_all_triplet_loss(labels, embeddings, margin):
    distances = pairwise_distances(embeddings)
    triplet_loss = tf.expand_dims(distances, 2) - tf.expand_dims(distances, 1) + margin
    mask = tf.to_float(triplet_mask(labels))
    triplet_loss = tf.maximum(mask * triplet_loss, 0.0)
    num_positive_triplets = tf.reduce_sum(tf.to_float(tf.greater(triplet_loss, 1e-16)))
    fraction_positive_triplets = num_positive_triplets / (tf.reduce_sum(mask) + 1e-16)
    return tf.reduce_sum(triplet_loss) / (num_positive_triplets + 1e-16), fraction_positive_triplets


def build_model(images, params):
    out = images
    for i, channels in enumerate([params.num_channels, params.num_channels * 2]):
        with tf.variable_scope(f"block_{i + 1}"):
            kernel = tf.get_variable("kernel", [3, 3, out.shape[3], channels])
            bias = tf.get_variable("bias", [channels], initializer=tf.zeros_initializer())
            out = tf.nn.relu(tf.nn.conv2d(out, kernel, strides=[1, 1, 1, 1], padding="SAME") + bias)
            out = tf.nn.max_pool(out, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="VALID")
    assert out.shape[1:] == [2, 2, params.num_channels * 2]
    out = tf.reshape(out, [-1, 2 * 2 * params.num_channels * 2])
    with tf.variable_scope("fc_1"):
        return tf.matmul(out, tf.get_variable("kernel", [out.shape[1], params.embedding_size]))


def model_fn(features, labels, mode, params):
    images = tf.reshape(features, [-1, 8, 8, 1])
    with tf.variable_scope("model"):
        embeddings = build_model(images, params)
    if mode == tf.estimator.ModeKeys.PREDICT:
        return tf.estimator.EstimatorSpec(mode=mode, predictions={"embeddings": embeddings})

    tf.summary.image("train_image", images, max_outputs=1)
    embedding_mean_norm = tf.reduce_mean(tf.norm(embeddings, axis=1))
    tf.summary.scalar("embedding_mean_norm", embedding_mean_norm)
    loss, fraction = batch_all_triplet_loss(tf.cast(labels, tf.int64), embeddings, margin=params.margin)
    if mode == tf.estimator.ModeKeys.EVAL:
        with tf.variable_scope("metrics"):
            eval_metric_ops = {
                "embedding_mean_norm": tf.metrics.mean(embedding_mean_norm),
                "fraction_positive_triplets": tf.metrics.mean(fraction),
            }
        return tf.estimator.EstimatorSpec(mode, loss=loss, eval_metric_ops=eval_metric_ops)

    tf.summary.scalar("fraction_positive_triplets", fraction)
    optimizer = tf.train.AdamOptimizer(params.learning_rate)
    train_op = optimizer.minimize(loss, global_step=tf.train.get_global_step())
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)


class IteratorInitializerHook(tf.train.SessionRunHook):
    """Feeds the arrays to the iterator when a session has been created."""

    def __init__(self):
        self.iterator_initializer_func = None

    def after_create_session(self, session, coord):
        self.iterator_initializer_func(session)


def get_train_inputs(images, labels, params):
    hook = IteratorInitializerHook()

    def train_inputs():
        images_placeholder = tf.placeholder(images.dtype, images.shape)
        labels_placeholder = tf.placeholder(labels.dtype, labels.shape)
        dataset = tf.data.Dataset.from_tensor_slices((images_placeholder, labels_placeholder))
        dataset = dataset.shuffle(2000).repeat().batch(params.batch_size)
        iterator = tf.data.make_initializable_iterator(dataset)
        feed = {images_placeholder: images, labels_placeholder: labels}
        hook.iterator_initializer_func = lambda session: session.run(iterator.initializer, feed_dict=feed)
        return iterator.get_next()

    return train_inputs, hook


def test_input_fn(images, labels, params):
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(params.batch_size)
    iterator = tf.data.make_initializable_iterator(dataset)
    tf.add_to_collection(tf.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
    return iterator.get_next()


def serving_input_receiver_fn():
    images = tf.placeholder(tf.float32, [None, 64])
    return tf.estimator.export.TensorServingInputReceiver(images, images)


def main(work_dir, num_workers):
    digits = load_digits()
    images, labels = (digits.data / 16.0).astype(np.float32), digits.target.astype(np.int64)
    params = argparse.Namespace(num_channels=16, embedding_size=4, margin=0.5, learning_rate=0.003, batch_size=48)
    config = tf.estimator.RunConfig(
        tf_random_seed=230,
        model_dir=os.path.join(work_dir, "model"),
        scaling_config=ScalingConfig(num_workers=num_workers),
    )
    estimator = tf.estimator.Estimator(model_fn, params=params, config=config)
    train_inputs, hook = get_train_inputs(images[:1200], labels[:1200], params)
    estimator.train(train_inputs, steps=200, hooks=[hook])
    metrics = estimator.evaluate(lambda: test_input_fn(images[1200:], labels[1200:], params))
    rows = list(estimator.predict(lambda: test_input_fn(images[1200:], labels[1200:], params)))
    export_dir = estimator.export_savedmodel(os.path.join(work_dir, "export"), serving_input_receiver_fn)
    request = {"input": images[1200:]}
    return {"metrics": metrics, "rows": rows, "labels": labels[1200:], "export_dir": export_dir, "request": request}


if __name__ == "__main__":
    result = main(work_dir=sys.argv[1], num_workers=int(sys.argv[2]))
