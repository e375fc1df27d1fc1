"""The private names of TensorFlow and Keras that the engine needs, each with a public meaning and a test."""
