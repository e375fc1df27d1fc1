"""What TensorFlow and Ray say that helps nobody is left out: TensorFlow's start-up chatter unless it is asked for."""

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
_LEAD_INS = (b"WARNING: All log messages before absl::InitializeLog()", b"To enable the following instructions:")
_STDERR = 2


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """A block in which TensorFlow is imported without its start-up chatter.

        with quiet_tensorflow():
            import tensorflow as tf

    Workers, tasks, and an Estimator that imports TensorFlow in this process do so by themselves. TensorFlow then says
    what TF_CPP_MIN_LOG_LEVEL lets through; unhelped it looks at that variable too late for what it says while it is
    loaded. If the variable is not set: errors where there is an NVIDIA driver, nothing elsewhere; whatever goes wrong
    is an exception as well. The logger `tensorflow` keeps its level, which TensorFlow sets to INFO in notebooks.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    level = os.environ.setdefault(_LEVEL, "2" if os.path.exists("/proc/driver/nvidia/version") else "3")
    logger = logging.getLogger("tensorflow")
    chosen = logger.level
    with _stderr_without_lines_below(int(level) if level.isdecimal() else 0):
        yield
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].get_logger()  # sets the level, once
        logger.setLevel(chosen)


@contextlib.contextmanager
def _stderr_without_lines_below(level: int) -> Iterator[None]:
    """What this process writes to its standard error meanwhile arrives at the end, but for TensorFlow's lines."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(_STDERR)
        os.dup2(said.fileno(), _STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            said.seek(0)
            os.write(_STDERR, b"".join(line for line in said if not _is_below(level, line)))


def _is_below(level: int, line: bytes) -> bool:
    if line.startswith(_LEAD_INS):
        return level > 0
    found = _LINE.match(line)
    return found is not None and b"IWE".index(found[1]) < level


def leave_out_local_mode_notice() -> None:
    """Ray Train tells whoever makes a `ScalingConfig(num_workers=0)` of its own local mode, which is not used here."""
    logging.getLogger("ray.train.v2.api.config").addFilter(_is_no_local_mode_notice)


def _is_no_local_mode_notice(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Running in local mode.")
