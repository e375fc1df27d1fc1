"""TensorFlow's hooks, under the names that they have in tf.estimator. They are imported on first use."""

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
"""The names here and at the root of the package. The hooks come from `tf.compat.v1.train`."""


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import tensorflow.compat.v1 as v1

    return getattr(v1.train, name)


def __dir__() -> list[str]:
    return sorted(NAMES)
