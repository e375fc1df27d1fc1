"""Train in process and save every step, up to the last step: `training_script.py MODEL_DIR OPTIONS LAST_STEP`."""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from ray.train import ScalingConfig
from support.models import endless_input_fn, linear_model_fn

from ray_estimator import Estimator, RunConfig

model_dir, storage_options, last_step = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
config = RunConfig(
    scaling_config=ScalingConfig(num_workers=0),
    save_checkpoints_steps=1,
    save_summary_steps=None,
    storage_options=storage_options,
)
Estimator(linear_model_fn, model_dir, config, params={}).train(endless_input_fn, max_steps=last_step)
