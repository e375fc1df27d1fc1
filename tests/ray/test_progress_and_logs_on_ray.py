"""What a person sees of a run on Ray: what user code says, and nothing of what TensorFlow and Ray tell each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "progress_program.py"
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of `progress_program.py`, as on a terminal without colours."""
    own = {"TF_CPP_MIN_LOG_LEVEL", "RAY_ADDRESS"}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    ended = subprocess.run(
        [sys.executable, PROGRAM, tmp_path_factory.mktemp("seen") / "model"],
        env={**environment, "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    return re.sub(r"\x1b\[\d*m", "", ended.stdout)


def test_workers_and_tasks_say_what_user_code_says_once_each_and_no_more(seen: str) -> None:
    # Ray's own cleaner of placement groups looks for another Ray on this machine, and says so.
    from_processes = Counter(
        words
        for process, words in re.findall(r"^\((\w+) pid=\d+\) (.*)$", seen, flags=re.M)
        if "Cleaner" not in process
    )
    assert from_processes.pop("printed in train") == 2 * 2  # a worker dies, and the group starts again
    assert from_processes.pop("logged in train") == 2 * 2
    assert from_processes.pop("printed in eval") >= 1
    assert from_processes.pop("printed in infer") >= 1
    assert set(from_processes) == {"logged in eval", "logged in infer"}


def test_the_driver_says_nothing_of_tensorflow_or_ray_data(seen: str) -> None:
    own = [line for line in seen.splitlines() if not line.startswith("(")]
    assert not [line for line in own if re.search(r"absl|oneDNN|ray\.data|Progress bars|Dataset", line)], own


def test_a_restart_is_told_with_its_cause(seen: str) -> None:
    assert re.findall(r"^restart .*", seen, flags=re.M) == [
        "restart 1: rank 1: ActorDiedError: The actor died unexpectedly before finishing this task."
    ]


def test_rays_metrics_endpoint_tells_of_the_run(seen: str) -> None:
    lines = re.findall(r'^ray_estimator_(\w+){.*\brun="(.*?)".*} (\S+)$', seen, flags=re.M)
    values = {name: float(value) for name, run, value in lines if run == "model"}
    assert {name for name in values if not name.startswith("input_wait")} == {
        "step",
        "loss",
        "examples_per_second",
        "step_seconds",
        "checkpoint_step",
        "save_seconds",
        "restarts_total",
    }
    assert (values["step"], values["checkpoint_step"], values["restarts_total"]) == (200, 200, 1)
    assert values["examples_per_second"] == pytest.approx(32 / values["step_seconds"], rel=0.01)
    assert 0 < values["save_seconds"] < 60


def test_progress_and_one_line_for_each_verb_are_shown(seen: str) -> None:
    lines = seen.splitlines()
    assert any(
        re.match(r"training: step \d+/200  loss [\d.e-]+  [\d,]+ examples/s .*checkpoint \d+", line) for line in lines
    )
    exported = next(line.split()[1] for line in lines if line.startswith("export: "))
    number = r"[\d.,e+-]+"
    for expected in (
        rf"trained to step 200: 200 steps in {number} s, {number} examples/s after startup, loss {number}, "
        r"checkpoint \S+/model\.ckpt-200",
        rf"evaluated step 200 in {number} s: mae {number}, loss {number}",
        rf"predicted 256 rows with step 200 in {number} s",
        rf"exported step 200 in {number} s: {re.escape(exported)}",
    ):
        assert [line for line in lines if re.fullmatch(expected, line)], expected
