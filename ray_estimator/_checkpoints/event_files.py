"""Names of event files and of the directories of evaluations in a model_dir, as tf.estimator chose them."""

from __future__ import annotations

EVENT_FILES = "*.tfevents.*"
"""Glob of the event files in one directory."""


def eval_dir_name(name: str | None = None) -> str:
    """Return the name of the directory with the events of evaluations called `name`."""
    return f"eval_{name}" if name else "eval"


def is_eval_dir_name(name: str) -> bool:
    """Whether `name` is that of an evaluation's directory."""
    return name == "eval" or name.startswith("eval_")
