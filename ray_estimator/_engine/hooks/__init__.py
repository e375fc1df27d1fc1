"""The SessionRunHooks of a training run."""
