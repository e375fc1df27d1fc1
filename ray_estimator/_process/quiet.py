"""Suppress startup logs of TensorFlow, and a notice of Ray Train that does not apply."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_LINE = re.compile(rb"([IWE])\d{4} \d\d:\d\d:")
_PREAMBLES = (b"WARNING: All log messages before absl::InitializeLog()", b"To enable the following instructions:")
_STDERR = 2


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Import TensorFlow inside this block without its startup logs.

        with quiet_tensorflow():
            import tensorflow as tf

    Workers, tasks, and an Estimator that imports TensorFlow in this process already do this. The level is that of
    TF_CPP_MIN_LOG_LEVEL, which TensorFlow alone reads too late for its first log lines. If the variable is not set,
    errors are shown where there is an NVIDIA driver, and nothing elsewhere; failures are raised as exceptions in any
    case. The logger `tensorflow` keeps its level, which TensorFlow sets to INFO in notebooks.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    level = os.environ.setdefault(_LEVEL, "2" if os.path.exists("/proc/driver/nvidia/version") else "3")
    logger = logging.getLogger("tensorflow")
    configured = logger.level
    with _stderr_without_lines_below(int(level) if level.isdecimal() else 0):
        yield
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].get_logger()  # sets the level, only on the first call
        logger.setLevel(configured)


@contextlib.contextmanager
def _stderr_without_lines_below(level: int) -> Iterator[None]:
    """Hold back the process's standard error during the block, then write it without TensorFlow's log lines."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured:
        stderr = os.dup(_STDERR)
        os.dup2(captured.fileno(), _STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            captured.seek(0)
            os.write(_STDERR, b"".join(line for line in captured if not _is_below(level, line)))


def _is_below(level: int, line: bytes) -> bool:
    if line.startswith(_PREAMBLES):
        return level > 0
    match = _LINE.match(line)
    return match is not None and b"IWE".index(match[1]) < level


def hide_local_mode_notice() -> None:
    """Hide what Ray Train logs about its local mode for `ScalingConfig(num_workers=0)`: that mode is not used here."""
    logging.getLogger("ray.train.v2.api.config").addFilter(_is_other_message)


def _is_other_message(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Running in local mode.")
