"""The example of Ray Tune, as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "tune.py"
pytestmark = pytest.mark.ray


def test_asha_tunes_params_and_ends_trials_that_fall_behind(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, EXAMPLE, tmp_path]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]

    trials = re.findall(r"^learning rate (\S+) +step +(\d+)  loss (\S+)$", ended.stdout, flags=re.M)
    steps = {float(rate): int(step) for rate, step, _ in trials}
    losses = {float(rate): float(loss) for rate, _, loss in trials}
    assert len(trials) == 8
    best = float(re.findall(r"^best: learning rate (\S+),", ended.stdout, flags=re.M)[0])
    assert (best, steps[best]) == (0.03, 200)
    assert losses[best] == min(losses.values())
    assert len([rate for rate, step in steps.items() if step < 200]) >= 4, steps
    # Each trial has a model_dir of its own, with the checkpoint that it came to.
    states = [path.read_text() for path in tmp_path.glob("*/checkpoint")]
    found = sorted(int(re.findall(r'^model_checkpoint_path: ".*-(\d+)"', state)[0]) for state in states)
    assert found == sorted(steps.values())
