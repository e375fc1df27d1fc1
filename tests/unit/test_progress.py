"""What a person sees while training runs."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from ray_estimator._jobs import GroupView, Vitals
from ray_estimator._progress import Progress


def shown(last_step: int | None, views: list[tuple[float, GroupView]], **console: Any) -> str:
    out = io.StringIO()
    clock = 0.0
    with Progress(last_step, Console(file=out, width=200, **console), clock=lambda: clock) as progress:
        for moment, seen in views:
            clock = moment
            progress.show(seen)
    return out.getvalue()


def view(
    step: int, loss: float | None, rate: float | None = None, number: int = 1, failures: tuple[str, ...] = ()
) -> GroupView:
    return GroupView("a", number, {0: Vitals("in a step", 0.1, step, loss, rate)}, {}, {}, failures)


def test_plain_lines_tell_step_loss_rate_and_time_left() -> None:
    text = shown(100, [(0, view(0, 2.0)), (10, view(50, 1.5, 1234.5)), (20, view(100, 1.25, 2000))])
    lines = text.splitlines()
    assert "step 50/100  loss 1.5  1,234 examples/s  ETA 0:10" in lines[1]
    assert "step 100/100  loss 1.25  2,000 examples/s  ETA 0:00" in lines[2]
    assert "\x1b" not in text


def test_plain_lines_do_not_come_too_often_but_the_last_one_comes() -> None:
    views = [(number / 10, view(number, 1.0)) for number in range(11)]
    lines = shown(10, views).splitlines()
    assert len(lines) == 2
    assert "step 10/10" in lines[-1]


def test_a_run_without_a_target_has_no_time_left() -> None:
    assert "ETA" not in shown(None, [(0, view(0, 2.0)), (10, view(50, 1.5, 10.0))])


def test_a_restart_shows_its_cause() -> None:
    views = [(0, view(5, 1.0)), (5, view(3, 1.0, number=2, failures=("rank 1: RayActorError: killed",)))]
    assert "restart 1: rank 1: RayActorError: killed" in shown(10, views)


def test_before_the_first_step_it_tells_what_the_chief_does() -> None:
    view_ = GroupView("a", 1, {0: Vitals("building the graph", 0.1, -1, None, None)}, {}, {}, ())
    assert "building the graph" in shown(10, [(0, view_)])


def test_on_a_terminal_the_line_stands_at_the_end() -> None:
    text = shown(10, [(0, view(1, 1.0)), (5, view(10, 0.5))], force_terminal=True)
    assert "\x1b" in text
    assert text.rstrip().splitlines()[-1].endswith("step 10/10  loss 0.5  ETA 0:00")
