"""A cell that trains is interrupted; the kernel, Ray and the checkpoint serve the next cell."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager, start_new_kernel

pytestmark = pytest.mark.ray

SETUP = """
import ray
from ray.train import ScalingConfig
from support.models import endless_input_fn, linear_model_fn
from ray_estimator import Estimator, RunConfig

ray.init(num_cpus=4, include_dashboard=False, logging_level="error")
config = RunConfig(scaling_config=ScalingConfig(num_workers=2), save_checkpoints_steps=10**6)
estimator = Estimator(linear_model_fn, {model_dir!r}, config, params={{"learning_rate": 0.001}})
"""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A kernel of this environment, and a function that runs a cell there and gives its reply and its outputs."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # The kernel and the workers import what tests define.
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        yield manager, lambda code, on_output=lambda text: None: run(client, code, on_output)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def run(client: Any, code: str, on_output: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    outputs: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        content = message["content"]
        outputs.append(content.get("text") or content.get("data", {}).get("text/plain") or "")
        on_output(outputs[-1])

    reply = client.execute_interactive(code, output_hook=hear, timeout=150)
    return reply["content"], "".join(outputs)


def test_an_interrupted_cell_leaves_a_checkpoint_a_kernel_and_a_ray(kernel: Any, tmp_path: Path) -> None:
    manager: KernelManager = kernel[0]
    execute = kernel[1]
    assert execute(SETUP.format(model_dir=str(tmp_path / "model")))[0]["status"] == "ok"
    interrupted: list[str] = []

    def interrupt_once(text: str) -> None:
        if re.search(r"training.* step \d+", text) and not interrupted:
            interrupted.append(text)
            manager.interrupt_kernel()

    reply, said = execute("estimator.train(endless_input_fn)", interrupt_once)
    assert (reply["status"], reply.get("ename")) == ("error", "KeyboardInterrupt"), said[-3000:]
    assert interrupted

    reply, said = execute("saved = estimator.get_variable_value('global_step'); print('saved', saved)")
    assert reply["status"] == "ok", said[-3000:]
    step = int(re.findall(r"saved (\d+)", said)[0])
    assert step > 0

    reply, said = execute(f"estimator.train(endless_input_fn, max_steps={step + 5}); ray.shutdown()")
    assert reply["status"] == "ok", said[-3000:]
    assert f"trained to step {step + 5}: 5 steps" in said
