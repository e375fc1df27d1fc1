"""A residual network for handwritten digits, with batch normalization and its update ops."""

import functools
import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from ray.train import ScalingConfig
from sklearn.datasets import load_digits

NUM_CLASSES = 10
IMAGE_SIZE = 8


def batch_norm_relu(inputs, is_training):
    inputs = tf.layers.batch_normalization(inputs, axis=3, momentum=0.9, epsilon=1e-5, training=is_training, fused=True)
    return tf.nn.relu(inputs)


def conv2d(inputs, filters, kernel_size, strides=1):
    return tf.layers.conv2d(
        inputs, filters, kernel_size, strides, padding="SAME", use_bias=False,
        kernel_initializer=tf.variance_scaling_initializer(),
    )  # fmt: skip


def building_block(inputs, filters, is_training, strides=1):
    shortcut = inputs
    inputs = batch_norm_relu(inputs, is_training)
    if shortcut.shape[3] != filters or strides != 1:
        shortcut = conv2d(inputs, filters, 1, strides)
    inputs = conv2d(inputs, filters, 3, strides)
    inputs = batch_norm_relu(inputs, is_training)
    return conv2d(inputs, filters, 3) + shortcut


def resnet(inputs, is_training):
    inputs = tf.identity(conv2d(inputs, 16, 3), "initial_conv")
    for block, (filters, strides) in enumerate([(16, 1), (32, 2)], start=1):
        inputs = tf.identity(building_block(inputs, filters, is_training, strides), f"block_layer{block}")
    inputs = tf.identity(tf.reduce_mean(batch_norm_relu(inputs, is_training), axis=[1, 2]), "final_reduce_mean")
    return tf.identity(tf.layers.dense(inputs, NUM_CLASSES), "final_dense")


def resnet_model_fn(features, labels, mode, params):
    tf.summary.image("images", features, max_outputs=6)
    logits = resnet(features, mode == tf.estimator.ModeKeys.TRAIN)
    predictions = {
        "classes": tf.argmax(logits, axis=1),
        "probabilities": tf.nn.softmax(logits, name="softmax_tensor"),
    }
    if mode == tf.estimator.ModeKeys.PREDICT:
        return tf.estimator.EstimatorSpec(
            mode=mode,
            predictions=predictions,
            export_outputs={"predict": tf.estimator.export.PredictOutput(predictions)},
        )

    cross_entropy = tf.losses.sparse_softmax_cross_entropy(logits=logits, labels=labels)
    tf.identity(cross_entropy, name="cross_entropy")
    l2_loss = params["weight_decay"] * tf.add_n(
        [tf.nn.l2_loss(v) for v in tf.trainable_variables() if "batch_normalization" not in v.name]
    )
    loss = cross_entropy + l2_loss

    train_op = None
    if mode == tf.estimator.ModeKeys.TRAIN:
        global_step = tf.train.get_or_create_global_step()
        learning_rate = tf.train.piecewise_constant(global_step, params["boundaries"], params["learning_rates"])
        tf.identity(learning_rate, name="learning_rate")
        tf.summary.scalar("learning_rate", learning_rate)
        optimizer = tf.train.MomentumOptimizer(learning_rate=learning_rate, momentum=0.9)
        minimize_op = optimizer.minimize(loss, global_step)
        update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        assert len(update_ops) >= 10, "each batch normalization has a mean and a variance"
        train_op = tf.group(minimize_op, update_ops)

    accuracy = tf.metrics.accuracy(labels, predictions["classes"])
    accuracy_top_2 = tf.metrics.mean(tf.nn.in_top_k(predictions=logits, targets=labels, k=2, name="top_2_op"))
    metrics = {"accuracy": accuracy, "accuracy_top_2": accuracy_top_2}
    tf.identity(accuracy[1], name="train_accuracy")
    tf.summary.scalar("train_accuracy", accuracy[1])
    return tf.estimator.EstimatorSpec(
        mode=mode, predictions=predictions, loss=loss, train_op=train_op, eval_metric_ops=metrics
    )


def preprocess_image(image, label, is_training):
    if is_training:
        image = tf.image.resize_image_with_crop_or_pad(image, IMAGE_SIZE + 2, IMAGE_SIZE + 2)
        image = tf.random_crop(image, [IMAGE_SIZE, IMAGE_SIZE, 1])
    return tf.image.per_image_standardization(image), label


def input_fn(images, labels, is_training, batch_size, input_context=None):
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    if is_training:
        if input_context:
            dataset = dataset.shard(input_context.num_input_pipelines, input_context.input_pipeline_id)
        dataset = dataset.shuffle(len(images)).repeat()
    dataset = dataset.map(functools.partial(preprocess_image, is_training=is_training), num_parallel_calls=2)
    return dataset.batch(batch_size, drop_remainder=is_training).prefetch(1)


def serving_input_receiver_fn():
    images = tf.placeholder(tf.float32, [None, IMAGE_SIZE, IMAGE_SIZE, 1], name="image")
    standardized = tf.map_fn(tf.image.per_image_standardization, images)
    return tf.estimator.export.TensorServingInputReceiver(standardized, {"image": images})


def main(work_dir, num_workers):
    digits = load_digits()
    images, labels = digits.images[..., np.newaxis].astype(np.float32), digits.target.astype(np.int32)
    run_config = tf.estimator.RunConfig(
        tf_random_seed=1, save_checkpoints_secs=3600, legacy_keras=True,
        scaling_config=ScalingConfig(num_workers=num_workers),
    )  # fmt: skip
    classifier = tf.estimator.Estimator(
        model_fn=resnet_model_fn,
        model_dir=os.path.join(work_dir, "model"),
        config=run_config,
        params={"weight_decay": 2e-4, "boundaries": [150, 200], "learning_rates": [0.1, 0.01, 0.001]},
    )
    tensors_to_log = {name: name for name in ("learning_rate", "cross_entropy", "train_accuracy")}
    logging_hook = tf.train.LoggingTensorHook(tensors_to_log, every_n_iter=50)

    def input_fn_train(input_context=None):
        return input_fn(images[:1300], labels[:1300], True, 64, input_context)

    def input_fn_eval():
        return input_fn(images[1300:], labels[1300:], False, 100)

    for _ in range(2):
        classifier.train(input_fn=input_fn_train, hooks=[logging_hook], steps=120)
        metrics = classifier.evaluate(input_fn=input_fn_eval)
    rows = list(classifier.predict(input_fn_eval))
    export_dir = classifier.export_saved_model(os.path.join(work_dir, "export"), serving_input_receiver_fn)
    request = {"image": images[1300:]}
    return {"metrics": metrics, "rows": rows, "labels": labels[1300:], "export_dir": export_dir, "request": request}


if __name__ == "__main__":
    result = main(work_dir=sys.argv[1], num_workers=int(sys.argv[2]))
