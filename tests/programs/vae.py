"""A variational autoencoder of handwritten digits: Keras layers in a model_fn, arrays from numpy_input_fn."""

import os
import sys

import numpy as np
import tensorflow as tf
from ray.train import ScalingConfig
from sklearn.datasets import load_digits

v1 = tf.compat.v1
LATENT_SIZE = 8
NUM_PIXELS = 64


def make_encoder(params):
    return tf.keras.Sequential(
        [
            tf.keras.layers.Dense(params["hidden_units"], activation="softplus"),
            tf.keras.layers.Dense(2 * LATENT_SIZE),
        ],
        name="encoder",
    )


def make_decoder(params):
    return tf.keras.Sequential(
        [
            tf.keras.layers.Dense(params["hidden_units"], activation="softplus"),
            tf.keras.layers.Dense(NUM_PIXELS),
        ],
        name="decoder",
    )


def image_tile_summary(name, pixels, rows=2, columns=4):
    tiles = tf.reshape(pixels[: rows * columns], [rows, columns, 8, 8])
    tiles = tf.reshape(tf.transpose(tiles, [0, 2, 1, 3]), [1, rows * 8, columns * 8, 1])
    v1.summary.image(name, tiles, max_outputs=1)


def model_fn(features, labels, mode, params, config):
    del labels, config
    encoder, decoder = make_encoder(params), make_decoder(params)
    mean, log_scale = tf.split(encoder(features), 2, axis=1)
    if mode == tf.estimator.ModeKeys.PREDICT:
        predictions = {"code": mean, "reconstruction": tf.sigmoid(decoder(mean))}
        return tf.estimator.EstimatorSpec(mode, predictions=predictions)

    code = mean + tf.exp(log_scale) * v1.random_normal(tf.shape(mean))
    logits = decoder(code)
    distortion = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=features, logits=logits), axis=1)
    rate = tf.reduce_sum(0.5 * (mean**2 + tf.exp(2 * log_scale) - 1) - log_scale, axis=1)
    loss = tf.reduce_mean(distortion + rate)
    image_tile_summary("recon/mean", tf.sigmoid(logits))
    v1.summary.scalar("elbo", -loss)
    v1.summary.histogram("code", code)

    global_step = v1.train.get_or_create_global_step()
    learning_rate = v1.train.cosine_decay(params["learning_rate"], global_step, params["max_steps"])
    train_op = v1.train.AdamOptimizer(learning_rate).minimize(loss, global_step=global_step)
    return tf.estimator.EstimatorSpec(
        mode=mode,
        loss=loss,
        train_op=train_op,
        eval_metric_ops={
            "elbo": v1.metrics.mean(-(distortion + rate)),
            "rate": v1.metrics.mean(rate),
            "distortion": v1.metrics.mean(distortion),
        },
    )


def serving_input_receiver_fn():
    images = v1.placeholder(tf.float32, [None, NUM_PIXELS], name="images")
    return tf.estimator.export.TensorServingInputReceiver(images, {"images": images})


def main(work_dir, num_workers):
    images = (load_digits().data > 7).astype(np.float32)
    np.random.RandomState(1).shuffle(images)
    train_images, test_images = images[:1400], images[1400:]
    params = {"hidden_units": 64, "learning_rate": 0.01, "max_steps": 600}
    train_input_fn = v1.estimator.inputs.numpy_input_fn(train_images, batch_size=100, num_epochs=None, shuffle=True)
    eval_input_fn = v1.estimator.inputs.numpy_input_fn(test_images, batch_size=100, num_epochs=1, shuffle=False)

    estimator = tf.estimator.Estimator(
        model_fn,
        params=params,
        config=tf.estimator.RunConfig(
            model_dir=os.path.join(work_dir, "model"),
            tf_random_seed=1,
            save_checkpoints_steps=300,
            scaling_config=ScalingConfig(num_workers=num_workers),
        ),
    )
    estimator.train(train_input_fn, max_steps=params["max_steps"])
    metrics = estimator.evaluate(eval_input_fn)
    rows = list(estimator.predict(eval_input_fn))
    export_dir = estimator.export_saved_model(os.path.join(work_dir, "export"), serving_input_receiver_fn)
    request = {"images": test_images}
    return {"metrics": metrics, "rows": rows, "labels": test_images, "export_dir": export_dir, "request": request}


if __name__ == "__main__":
    result = main(work_dir=sys.argv[1], num_workers=int(sys.argv[2]))
