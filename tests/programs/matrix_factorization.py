"""Matrix factorization: predicts film ratings from a pandas DataFrame.

The embeddings have sparse gradients. Their average over the steps is evaluated, served and saved.
"""

import os
import sys

import numpy as np
import pandas as pd
import tensorflow.compat.v1 as tf
from ray.train import ScalingConfig

NUM_USERS, NUM_MOVIES = 80, 60


def make_ratings(num_ratings, seed):
    rng, world = np.random.RandomState(seed), np.random.RandomState(6)
    taste = world.normal(size=(NUM_USERS, 2)) @ world.normal(size=(2, NUM_MOVIES))
    bias = 0.3 * world.normal(size=(NUM_USERS, 1)) + 0.3 * world.normal(size=NUM_MOVIES)
    users, movies = rng.randint(NUM_USERS, size=num_ratings), rng.randint(NUM_MOVIES, size=num_ratings)
    ratings = 3.5 + (bias + 0.7 * taste)[users, movies] + 0.2 * rng.normal(size=num_ratings)
    return pd.DataFrame({"user": [f"u{user}" for user in users], "movie": movies, "rating": ratings.astype(np.float32)})


def embeddings_of(ids, name, size, params):
    with tf.variable_scope(name):
        vectors = tf.get_variable(
            "embeddings", [size, params["dimension"]], initializer=tf.random_normal_initializer(stddev=0.3)
        )
        biases = tf.get_variable("biases", [size], initializer=tf.zeros_initializer())
    return tf.nn.embedding_lookup(vectors, ids), tf.nn.embedding_lookup(biases, ids), vectors


def model_fn(features, labels, mode, params):
    users = tf.string_to_hash_bucket_fast(features["user"], params["user_buckets"])
    user, user_bias, user_vectors = embeddings_of(users, "users", params["user_buckets"], params)
    movie, movie_bias, movie_vectors = embeddings_of(features["movie"], "movies", NUM_MOVIES, params)
    mean = tf.get_variable("mean", [], initializer=tf.constant_initializer(3.0))
    rating = mean + user_bias + movie_bias + tf.reduce_sum(user * movie, axis=1)
    averages = tf.train.ExponentialMovingAverage(decay=0.9)
    saver = None
    if mode != tf.estimator.ModeKeys.TRAIN:
        saver = tf.train.Saver(averages.variables_to_restore())
    scaffold = tf.train.Scaffold(saver=saver)

    if mode == tf.estimator.ModeKeys.PREDICT:
        predictions = {"rating": rating, "user_vector": user}
        return tf.estimator.EstimatorSpec(
            mode,
            predictions=predictions,
            export_outputs={"rating": tf.estimator.export.PredictOutput(predictions)},
            scaffold=scaffold,
        )

    tf.losses.mean_squared_error(labels, rating)
    for vectors in (user, movie):
        tf.losses.add_loss(params["l2"] * tf.nn.l2_loss(vectors), tf.GraphKeys.REGULARIZATION_LOSSES)
    loss = tf.losses.get_total_loss(add_regularization_losses=mode == tf.estimator.ModeKeys.TRAIN)
    if mode == tf.estimator.ModeKeys.EVAL:
        metrics = {
            "rmse": tf.metrics.root_mean_squared_error(labels, rating),
            "mae": tf.metrics.mean_absolute_error(labels, rating),
            "mean_prediction": tf.metrics.mean(rating),
        }
        return tf.estimator.EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics, scaffold=scaffold)

    global_step = tf.train.get_or_create_global_step()
    learning_rate = tf.train.exponential_decay(params["learning_rate"], global_step, 200, 0.5, staircase=True)
    optimizer = tf.train.AdagradOptimizer(learning_rate, initial_accumulator_value=0.1)
    gradients = optimizer.compute_gradients(loss)
    assert sum(isinstance(gradient, tf.IndexedSlices) for gradient, _ in gradients) >= 4
    apply = optimizer.apply_gradients(gradients, global_step=global_step)
    with tf.control_dependencies([apply]):
        train_op = averages.apply(tf.trainable_variables())
    for name, vectors in (("users", user_vectors), ("movies", movie_vectors)):
        tf.summary.histogram(name, vectors)
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op, scaffold=scaffold)


def pandas_fn(ratings, **options):
    return tf.estimator.inputs.pandas_input_fn(
        ratings[["user", "movie"]], ratings["rating"], target_column="rating", batch_size=100, **options
    )


def serving_input_receiver_fn():
    features = {
        "user": tf.placeholder(tf.string, [None], name="user"),
        "movie": tf.placeholder(tf.int64, [None], name="movie"),
    }
    return tf.estimator.export.ServingInputReceiver(features=features, receiver_tensors=features)


def main(work_dir, num_workers):
    train_ratings, test_ratings = make_ratings(6000, seed=1), make_ratings(1500, seed=2)
    params = {"user_buckets": 2000, "dimension": 4, "learning_rate": 0.5, "l2": 0.0005}
    run_config = tf.estimator.RunConfig(
        model_dir=os.path.join(work_dir, "model"),
        tf_random_seed=1,
        keep_checkpoint_max=2,
        scaling_config=ScalingConfig(num_workers=num_workers),
    )
    estimator = tf.estimator.Estimator(model_fn=model_fn, params=params, config=run_config)
    estimator.train(pandas_fn(train_ratings, num_epochs=7, shuffle=True))
    metrics = estimator.evaluate(pandas_fn(test_ratings, num_epochs=1, shuffle=False))
    rows = list(estimator.predict(pandas_fn(test_ratings, num_epochs=1, shuffle=False)))
    export_dir = estimator.export_savedmodel(os.path.join(work_dir, "export"), serving_input_receiver_fn)
    labels = test_ratings["rating"].to_numpy()
    request = {"user": test_ratings["user"].to_numpy(object), "movie": test_ratings["movie"].to_numpy()}
    return {"metrics": metrics, "rows": rows, "labels": labels, "export_dir": export_dir, "request": request}


if __name__ == "__main__":
    result = main(work_dir=sys.argv[1], num_workers=int(sys.argv[2]))
