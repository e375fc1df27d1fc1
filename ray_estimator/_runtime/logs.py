"""Log levels of workers and tasks, which follow the driver's; Ray's own notices are hidden."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

from ray_estimator._runtime import ray_private

_LOGGERS = ("ray_estimator", "tensorflow")
_RAY_TRAIN = "ray.train"


def log_levels() -> dict[str, int]:
    """Return the levels of the loggers of ray_estimator and TensorFlow in this process."""
    return {name: logging.getLogger(name).getEffectiveLevel() for name in _LOGGERS}


def set_log_levels(levels: Mapping[str, int]) -> None:
    """Set the levels of loggers in this process."""
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def ray_train_log_level() -> str:
    """Return the level for Ray Train's controller and workers: WARNING, unless the user has set one on the driver."""
    return logging.getLevelName(logging.getLogger(_RAY_TRAIN).level or logging.WARNING)


@contextlib.contextmanager
def without_execution_notices() -> Iterator[None]:
    """Hide Ray Data's notices that progress bars are disabled and that an execution has ended."""
    ray_private.hide_progress_bar_notice()
    logger = logging.getLogger(ray_private.EXECUTION_LOGGER)

    def is_warning(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    logger.addFilter(is_warning)
    try:
        yield
    finally:
        logger.removeFilter(is_warning)
