"""A process that stands still ends, also where nobody can be told."""

from __future__ import annotations

import subprocess
import sys

STANDS_STILL = """
import threading
from ray_estimator._runtime.tasks import watchdog

def hang(*args):
    threading.Event().wait()

def results():
    hang()
    yield

watchdog.ray_private.put_value = hang
watchdog._REPORT_SECS = 0.2
next(watchdog.with_watchdog(results(), watchdog.StallTimeout(0.2, b"key")))
"""


def test_a_process_that_stands_still_ends_where_the_driver_cannot_be_told() -> None:
    done = subprocess.run([sys.executable, "-c", STANDS_STILL], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "in results" in done.stderr
