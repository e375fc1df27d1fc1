"""The current process: signals, identity, heartbeat, periodic threads, startup logs of TensorFlow."""
