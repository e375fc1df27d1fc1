"""This process: signals, identity, heartbeat, logs of TensorFlow at startup."""
