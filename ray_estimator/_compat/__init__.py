"""The names of tf.estimator, restored by `install()`."""
