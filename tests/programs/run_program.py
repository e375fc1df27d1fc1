"""Run an unchanged tf.estimator program after `install()`: `run_program.py PROGRAM WORK_DIR NUM_WORKERS`.

Writes the result of the program's `main` to WORK_DIR for the tests.
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
