"""The code that uses TensorFlow. It runs on workers, in tasks, or in the caller's process, and does not use Ray."""
