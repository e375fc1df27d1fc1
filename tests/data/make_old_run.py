"""Makes tests/data/tf_estimator_2_15.tar.gz: a model_dir of tf.estimator's own, and what came of it there.

Run it with TensorFlow 2.15, which has Python up to 3.11:

    python -m venv old && old/bin/pip install tensorflow-cpu==2.15.1 "numpy<2"
    PYTHONPATH=tests old/bin/python tests/data/make_old_run.py

The archive holds `model_dir` as it was after 12 steps and one evaluation, and `expected.npz`: what evaluate and
predict gave then, and every variable after 8 further steps.
"""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from support import old_runs

ARCHIVE = Path(__file__).parent / "tf_estimator_2_15.tar.gz"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model_dir, archived = Path(folder) / "work", Path(folder) / "model_dir"
        config = tf.estimator.RunConfig(
            str(model_dir), tf_random_seed=1, save_summary_steps=5, save_checkpoints_steps=5, keep_checkpoint_max=3
        )
        model_fn = old_runs.model_of(tf.estimator.EstimatorSpec)
        estimator = tf.estimator.Estimator(model_fn, config=config)
        estimator.train(old_runs.endless_input_fn, steps=12)
        evaluated = estimator.evaluate(old_runs.one_pass_input_fn)
        predicted = np.stack([row["y"] for row in estimator.predict(old_runs.one_pass_input_fn)])
        shutil.copytree(model_dir, archived)
        estimator.train(old_runs.endless_input_fn, steps=8)
        np.savez(
            Path(folder) / "expected.npz",
            predicted=predicted,
            **{f"evaluated/{name}": value for name, value in evaluated.items()},
            **{f"variables/{name}": value for name, value in old_runs.variables_in(str(model_dir)).items()},
        )
        with tarfile.open(ARCHIVE, "w:gz") as archive:
            for name in ("model_dir", "expected.npz"):
                archive.add(Path(folder) / name, name, filter=_of_nobody)


def _of_nobody(member: Any) -> Any:
    """Leaves out who made it, and where: event files have the host in their names."""
    member.name = re.sub(r"(tfevents\.\d+)\..*", r"\1.host", member.name)
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
