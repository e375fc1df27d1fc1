"""Run an unchanged tf.estimator program after `install()`: `run_program.py PROGRAM WORK_DIR NUM_WORKERS`.

Writes the result of the program's `main` to WORK_DIR for the tests.
"""

from __future__ import annotations

import pickle
import runpy
import sys
from pathlib import Path

import ray_estimator


def run(program: str, work_dir: str, num_workers: str) -> None:
    """Run it in this process."""
    ray_estimator.install()
    sys.argv = [program, work_dir, num_workers]
    result = runpy.run_path(program, run_name="__main__")["result"]
    Path(work_dir, "result.pickle").write_bytes(pickle.dumps(result))


def run_with_two_processes(program: str, work_dir: str) -> None:
    """Run it in this process, its two ranks in two others."""
    import pytest
    from support.two_processes import use_two_processes

    use_two_processes(pytest.MonkeyPatch())
    run(program, work_dir, "2")


if __name__ == "__main__":
    run(*sys.argv[1:])
