"""Progress during training, and the summary line of each call."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ray_estimator import RunConfig
from ray_estimator._checkpoints.store import Checkpoint
from ray_estimator._jobs.results import TrainResult
from ray_estimator._jobs.worker import GroupView, StatusSnapshot
from ray_estimator._reporting import progress as progress_module
from ray_estimator._reporting.progress import LiveLine, NotebookLine, PlainLines, Progress, display_for, make_progress
from ray_estimator._reporting.summary import Summary


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(last_step: int | None, views: list[tuple[float, GroupView]]) -> str:
    out, clock = io.StringIO(), Clock()
    display = PlainLines(Console(file=out, width=200), clock)
    play(Progress(last_step, display, clock), clock, views)
    return out.getvalue()


def play(progress: Progress, clock: Clock, views: list[tuple[float, GroupView]]) -> None:
    with progress:
        for clock.now, seen in views:
            progress.show(seen)


def view(
    step: int,
    loss: float | None,
    rate: float | None = None,
    number: int = 1,
    failures: tuple[str, ...] = (),
    **statuses: Any,
) -> GroupView:
    return GroupView("a", number, {0: StatusSnapshot("in a step", 0.1, step, loss, rate, **statuses)}, {}, {}, failures)


def test_plain_lines_have_step_loss_rate_and_eta() -> None:
    text = plain(100, [(0, view(0, 2.0)), (10, view(50, 1.5, 1234.5)), (20, view(100, 1.25, 2000))])
    lines = text.splitlines()
    assert lines[1] == "training: step 50/100  loss 1.5  1,234 examples/s  ETA 0:10"
    assert lines[2] == "training: step 100/100  loss 1.25  2,000 examples/s  ETA 0:00"
    assert "\x1b" not in text


def test_a_line_has_input_wait_and_checkpoints() -> None:
    seen = view(50, 1.5, 10, input_wait=0.123, published_step=40)
    line = "training: step 50/100  loss 1.5  10 examples/s  input wait 12%  checkpoint 40"
    assert plain(100, [(0, seen)]).strip() == line
    saving = view(50, 1.5, 10, published_step=40, publishing_step=50)
    assert plain(None, [(0, saving)]).strip().endswith("  saving 50")


def test_without_batches_the_rate_is_in_steps() -> None:
    assert "  2.5 steps/s" in plain(None, [(0, view(50, 1.5, None, step_secs=0.4))])


def test_a_long_eta_has_hours() -> None:
    assert "ETA 2:46:40" in plain(1001, [(0, view(0, 2.0)), (10, view(1, 1.5))])


def test_plain_lines_are_throttled_except_the_last_one() -> None:
    lines = plain(10, [(number / 10, view(number, 1.0)) for number in range(11)]).splitlines()
    assert len(lines) == 2
    assert "step 10/10" in lines[-1]


def test_the_interval_of_plain_lines_grows() -> None:
    secs = 10_000
    lines = plain(None, [(second, view(second, 1.0)) for second in range(secs)]).splitlines()
    assert len([line for line in lines if int(line.split()[2]) < 20]) == 10
    assert len(lines) < 100


def test_a_run_without_a_last_step_has_no_eta() -> None:
    assert "ETA" not in plain(None, [(0, view(0, 2.0)), (10, view(50, 1.5, 10.0))])


def test_a_restart_shows_its_cause_verbatim() -> None:
    cause = "rank 1: RayActorError: [killed] :warning:"
    assert f"restart 1: {cause}\n" in plain(10, [(0, view(5, 1.0)), (5, view(3, 1.0, number=2, failures=(cause,)))])


def test_before_the_first_step_the_phase_of_the_chief_is_shown() -> None:
    view_ = GroupView("a", 1, {0: StatusSnapshot("building the graph", 0.1, -1, None, None)}, {}, {}, ())
    assert "building the graph" in plain(10, [(0, view_)])


def test_a_terminal_shows_a_bar_and_keeps_the_last_line() -> None:
    out, clock = io.StringIO(), Clock()
    display = display_for(Console(file=out, width=200, force_terminal=True, color_system=None))
    assert isinstance(display, LiveLine)
    play(Progress(10, display, clock), clock, [(0, view(1, 1.0)), (5, view(5, 0.5)), (9, view(10, 0.5))])
    text = out.getvalue()
    assert f"training {'━' * 12}{' ' * 12} step 5/10  loss 0.5" in text
    assert text.rstrip().splitlines()[-1].endswith("training: step 10/10  loss 0.5  ETA 0:00")


class Display:
    """A fake of `IPython.display.display`: outputs that can be replaced."""

    def __init__(self) -> None:
        self.outputs: list[str] = []

    def __call__(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Display:
        self.outputs.append("")
        self.update(data, raw=raw)
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        self.outputs[-1] = data["text/plain"]


def test_a_notebook_output_is_replaced() -> None:
    display, clock = Display(), Clock()
    progress = Progress(10, NotebookLine(Console(file=io.StringIO()), display), clock)
    play(progress, clock, [(0, view(1, 1.0)), (1, view(5, 0.5)), (2, view(10, 0.5))])
    assert display.outputs == [f"training {'━' * 24} step 10/10  loss 0.5  ETA 0:00"]


@pytest.mark.parametrize(("done", "width"), [(0.0, 0), (0.5, 12), (1.0, 24), (1.5, 24)])
@pytest.mark.parametrize("color_system", [None, "standard"])
def test_the_bar_has_a_fixed_width(done: float, width: int, color_system: Any) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=color_system, width=200)

    text = progress_module._with_bar(console, "training: step 1", done).plain

    assert len(text) == len("training  step 1") + 24
    assert text.startswith(f"training {'━' * width}")


def test_progress_false_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(config: RunConfig) -> str:
        out = io.StringIO()
        monkeypatch.setattr(progress_module, "_console", lambda: Console(file=out))
        play(make_progress(config, 10), Clock(), [(0, view(10, 1.0))])
        Summary(config).predicted(3, "row", None)
        return out.getvalue()

    assert len(said(RunConfig()).splitlines()) == 2
    assert said(RunConfig(progress=False)) == ""
    with pytest.raises(TypeError, match="progress must be True or False"):
        RunConfig(progress="no")  # type: ignore[arg-type]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    out = io.StringIO()
    monkeypatch.setattr(progress_module, "_console", lambda: Console(file=out, width=40))
    return lambda: out.getvalue().splitlines()


def test_each_call_ends_with_one_line(lines: Any) -> None:
    summary = Summary(RunConfig(model_dir="s3://bucket/[run]"))
    checkpoint = Checkpoint("s3://bucket/run/model.ckpt-400", 400)
    summary.trained(TrainResult(400, 0.12044, 300, examples_per_sec=10187.4, published_step=400), first_step=100)
    results = {
        "global_step": np.int64(400),
        "loss": np.float32(0.5),
        "accuracy": 0.98,
        "drawn": b"...",
        "all": [1, 2],
    }
    summary.evaluated(results, "test")
    summary.predicted(1360, "row", checkpoint)
    summary.predicted(1, "batch", None)
    summary.exported("s3://bucket/export/1", checkpoint)
    assert lines() == [
        "trained to step 400: 300 steps in 0.0 s, 10,187 examples/s after startup, loss 0.1204, "
        "checkpoint s3://bucket/[run]/model.ckpt-400",
        "evaluated step 400 (test) in 0.0 s: accuracy 0.98, loss 0.5",
        "predicted 1,360 rows with step 400 in 0.0 s",
        "predicted 1 batch with initial weights in 0.0 s",
        "exported step 400 in 0.0 s: s3://bucket/export/1",
    ]


def test_a_run_without_checkpoints_or_steps_has_a_short_line(lines: Any) -> None:
    Summary(RunConfig(model_dir="m")).trained(TrainResult(5, None, 0), first_step=5)
    assert lines() == ["trained to step 5: 0 steps in 0.0 s"]
