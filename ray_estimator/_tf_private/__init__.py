"""Private names of TensorFlow and Keras, each behind a function with a public meaning and a test."""
