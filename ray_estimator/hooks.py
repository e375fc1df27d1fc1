"""Hooks under the names that tf.estimator gave them. They are TensorFlow's own, imported when they are asked for."""

from __future__ import annotations

from typing import Any

NAMES = (
    "CheckpointSaverHook",
    "CheckpointSaverListener",
    "FeedFnHook",
    "FinalOpsHook",
    "GlobalStepWaiterHook",
    "LoggingTensorHook",
    "NanLossDuringTrainingError",
    "NanTensorHook",
    "ProfilerHook",
    "SecondOrStepTimer",
    "SessionRunArgs",
    "SessionRunContext",
    "SessionRunHook",
    "SessionRunValues",
    "StepCounterHook",
    "StopAtStepHook",
    "SummarySaverHook",
)
"""Each is found here, at the root of the package, and in `tf.compat.v1.train`."""


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import tensorflow.compat.v1 as v1

    return getattr(v1.train, name)


def __dir__() -> list[str]:
    return sorted(NAMES)
