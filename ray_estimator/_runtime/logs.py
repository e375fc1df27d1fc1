"""What the processes of a run say: as much as the driver's own loggers would, and nothing of what only Ray is about."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

from ray.util.debug import log_once

_NAMES = ("ray_estimator", "tensorflow")
_RAY_TRAIN = "ray.train"
_RAY_DATA = "ray.data._internal.execution.streaming_executor"


def levels() -> dict[str, int]:
    """The levels from which on the loggers of the Estimator and of TensorFlow speak in this process."""
    return {name: logging.getLogger(name).getEffectiveLevel() for name in _NAMES}


def speak_as(levels: Mapping[str, int]) -> None:
    """Lets the loggers of this process speak from the same levels on."""
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def ray_train_level() -> str:
    """From where on Ray Train's controller and workers speak: warnings, unless somebody has chosen a level here."""
    return logging.getLevelName(logging.getLogger(_RAY_TRAIN).level or logging.WARNING)


@contextlib.contextmanager
def unannounced() -> Iterator[None]:
    """Ray Data announces neither that it shows no progress bars, nor that an execution has ended."""
    log_once("ray_data_progress_manager_disabled")  # What was said once is not said again.
    logger = logging.getLogger(_RAY_DATA)

    def warns(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    logger.addFilter(warns)
    try:
        yield
    finally:
        logger.removeFilter(warns)
