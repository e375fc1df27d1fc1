"""Trains on a cluster of two nodes, of which the second has a directory of its own where the first has model_dir.

`two_nodes_program.py MODEL_DIR` prints the error. It needs the right to mount, and `unshare`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time

os.environ["RAY_AUTH_MODE"] = "disabled"
# `ray start` leaves its address there, for every Ray of this machine that looks at the same folder.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")

import ray
from support.models import endless_input_fn, linear_model_fn

from ray_estimator import Estimator, ModelDirAccessError, RunConfig

START_SECS = 120.0
model_dir = sys.argv[1]

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
address = ray.get_runtime_context().gcs_address
# In a mount namespace of its own, what is mounted hides what the others see.
start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--num-cpus=1", "--block"]
hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', model_dir]
node = subprocess.Popen([*hide, *start], stdout=subprocess.DEVNULL)
try:
    deadline = time.monotonic() + START_SECS
    while sum(each["Alive"] for each in ray.nodes()) < 2:
        assert node.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    try:
        Estimator(linear_model_fn, model_dir, RunConfig(), params={}).train(endless_input_fn, steps=1)
    except ModelDirAccessError as error:
        print(error)
finally:
    node.terminate()
    node.wait()
    ray.shutdown()
    shutil.rmtree(os.environ["RAY_TMPDIR"])
