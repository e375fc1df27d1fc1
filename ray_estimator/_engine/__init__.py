"""Everything that knows TensorFlow. Runs on workers, in tasks, or in the caller's process; starts no Ray job."""
