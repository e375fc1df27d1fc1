"""The names of tf.estimator, put back by `install()`."""
