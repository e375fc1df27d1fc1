"""Settings of Keras 3: those of a thread, and those that a graph ignores. Imports neither TensorFlow nor Keras."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

OPTIMIZER_ARGUMENTS_WITHOUT_EFFECT = ("gradient_accumulation_steps", "ema_overwrite_frequency")
"""Arguments of Keras optimizers that Keras checks in Python, so that they have no effect in a graph."""

_NAMES = ("dtype_policy", "global_random_seed")


def keras_settings() -> dict[str, Any]:
    """Return the settings of the calling thread in Keras 3, by Keras's names. Empty if Keras is not imported."""
    state = sys.modules.get("keras.src.backend.common.global_state")
    if state is None:
        return {}
    settings = {name: state.get_global_attribute(name) for name in _NAMES}
    return {name: value for name, value in settings.items() if value is not None}


def apply_keras_settings(settings: Mapping[str, Any]) -> None:
    """Apply settings of another thread or process to the calling thread. No effect if Keras 3 is not imported."""
    state = sys.modules.get("keras.src.backend.common.global_state")
    if state is None:
        return
    for name, value in settings.items():
        state.set_global_attribute(name, value)
