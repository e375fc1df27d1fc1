"""A driver that trains in process and saves every 20 steps, until somebody kills it: `driver_script.py MODEL_DIR`."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from ray.train import ScalingConfig
from support.models import endless_input_fn, linear_model_fn

from ray_estimator import Estimator, RunConfig

config = RunConfig(scaling_config=ScalingConfig(num_workers=0), save_checkpoints_steps=20, save_summary_steps=0)
Estimator(linear_model_fn, sys.argv[1], config, params={}).train(endless_input_fn)
