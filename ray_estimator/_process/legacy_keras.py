"""The environment variable that makes TensorFlow use legacy Keras (tf_keras). TensorFlow reads it when imported."""

from __future__ import annotations

import os

NAME = "TF_USE_LEGACY_KERAS"
ENABLED = {NAME: "1"}


def is_enabled() -> bool:
    """Return whether the variable is set in this process."""
    return os.environ.get(NAME) in ("1", "true", "True")
