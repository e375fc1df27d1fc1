"""A GAN that learns points on a ring: two networks and two optimizers.

As in GAN libraries for Estimators, a hook trains the discriminator before each step of the generator.
"""

import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from ray.train import ScalingConfig

NOISE_SIZE = 4


def real_points(num_points, seed):
    rng = np.random.RandomState(seed)
    angles, radii = rng.uniform(0, 2 * np.pi, num_points), 1 + 0.05 * rng.normal(size=num_points)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1).astype(np.float32)


def dense(inputs, units, name):
    with tf.variable_scope(name):
        kernel = tf.get_variable("kernel", [inputs.shape[1], units], initializer=tf.glorot_uniform_initializer())
        return tf.matmul(inputs, kernel) + tf.get_variable("bias", [units], initializer=tf.zeros_initializer())


def generator(noise):
    with tf.variable_scope("Generator"):
        net = tf.nn.relu(dense(noise, 32, "hidden1"))
        net = tf.nn.relu(dense(net, 32, "hidden2"))
        return dense(net, 2, "points")


def discriminator(points, reuse=False):
    with tf.variable_scope("Discriminator", reuse=reuse):
        net = tf.nn.leaky_relu(dense(points, 32, "hidden1"))
        net = tf.nn.leaky_relu(dense(net, 32, "hidden2"))
        return dense(net, 1, "logits")


class RunTrainOpsHook(tf.train.SessionRunHook):
    """Runs a train op several times before each step."""

    def __init__(self, train_op, train_steps):
        self.train_op = train_op
        self.train_steps = train_steps

    def before_run(self, run_context):
        for _ in range(self.train_steps):
            run_context.session.run(self.train_op)


def gan_model_fn(features, labels, mode, params):
    generated = generator(features)
    if mode == tf.estimator.ModeKeys.PREDICT:
        return tf.estimator.EstimatorSpec(mode, predictions=generated)

    real_logits = discriminator(labels)
    fake_logits = discriminator(generated, reuse=True)
    cross_entropy = tf.losses.sigmoid_cross_entropy
    d_loss = cross_entropy(tf.ones_like(real_logits), real_logits) + cross_entropy(
        tf.zeros_like(fake_logits), fake_logits
    )
    g_loss = cross_entropy(tf.ones_like(fake_logits), fake_logits, scope="generator_loss")
    if mode == tf.estimator.ModeKeys.EVAL:
        radii = tf.norm(generated, axis=1)
        metrics = {
            "discriminator_loss": tf.metrics.mean(d_loss),
            "radius": tf.metrics.mean(radii),
            "near_ring": tf.metrics.mean(tf.to_float(tf.abs(radii - 1) < 0.2)),
        }
        return tf.estimator.EstimatorSpec(mode, loss=g_loss, eval_metric_ops=metrics)

    tf.summary.scalar("discriminator_loss", d_loss)
    global_step = tf.train.get_global_step()
    learning_rate = tf.train.exponential_decay(params["learning_rate"], global_step, params["max_steps"], 0.1)
    g_optimizer = tf.train.AdamOptimizer(learning_rate, beta1=0.5)
    d_optimizer = tf.train.AdamOptimizer(learning_rate, beta1=0.5)
    d_variables = tf.trainable_variables("Discriminator")
    train_discriminator = d_optimizer.minimize(d_loss, var_list=d_variables)
    train_generator = g_optimizer.minimize(
        g_loss, global_step=global_step, var_list=tf.trainable_variables("Generator")
    )
    return tf.estimator.EstimatorSpec(
        mode, loss=g_loss, train_op=train_generator, training_hooks=[RunTrainOpsHook(train_discriminator, 3)]
    )


def train_input_fn(params):
    points = tf.data.Dataset.from_tensor_slices(real_points(2000, seed=1)).shuffle(2000).repeat()
    points = tf.data.make_one_shot_iterator(points.batch(params["batch_size"], drop_remainder=True)).get_next()
    return tf.random_normal([params["batch_size"], NOISE_SIZE]), points


def test_input_fn(params):
    noise = np.random.RandomState(7).normal(size=(1000, NOISE_SIZE)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((noise, real_points(1000, seed=2))).batch(params["batch_size"])


def serving_input_receiver_fn():
    noise = tf.placeholder(tf.float32, [None, NOISE_SIZE], name="noise")
    return tf.estimator.export.TensorServingInputReceiver(noise, {"noise": noise})


def main(work_dir, num_workers):
    params = {"batch_size": 100, "learning_rate": 0.004, "max_steps": 400}
    config = tf.estimator.RunConfig(
        tf_random_seed=1,
        save_checkpoints_secs=None,
        save_checkpoints_steps=200,
        scaling_config=ScalingConfig(num_workers=num_workers),
    )
    gan_estimator = tf.estimator.Estimator(gan_model_fn, os.path.join(work_dir, "model"), config, params)
    gan_estimator.train(train_input_fn, max_steps=params["max_steps"])
    metrics = gan_estimator.evaluate(test_input_fn)
    rows = list(gan_estimator.predict(test_input_fn))
    export_dir = gan_estimator.export_savedmodel(os.path.join(work_dir, "export"), serving_input_receiver_fn)
    request = {"noise": np.random.RandomState(7).normal(size=(1000, NOISE_SIZE)).astype(np.float32)}
    labels = real_points(1000, seed=2)
    return {"metrics": metrics, "rows": rows, "labels": labels, "export_dir": export_dir, "request": request}


if __name__ == "__main__":
    result = main(work_dir=sys.argv[1], num_workers=int(sys.argv[2]))
