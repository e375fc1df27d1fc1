"""Runs a program for tf.estimator as it is, after `install()` alone: `run_program.py PROGRAM WORK_DIR NUM_WORKERS`.

What the program's `main` returned is left in WORK_DIR for the tests.
"""

import pickle
import runpy
import sys
from pathlib import Path

import ray_estimator

ray_estimator.install()
sys.argv = sys.argv[1:]
program, work_dir, _ = sys.argv
result = runpy.run_path(program, run_name="__main__")["result"]
Path(work_dir, "result.pickle").write_bytes(pickle.dumps(result))
