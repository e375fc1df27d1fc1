"""A task process that hangs is killed, even if it cannot report to the driver."""

from __future__ import annotations

import subprocess
import sys

HANGING_TASK = """
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


def test_a_hanging_process_is_killed_even_if_the_report_hangs() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING_TASK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "in results" in done.stderr
