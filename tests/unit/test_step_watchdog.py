"""Detection of a hung training run."""

from __future__ import annotations

from ray_estimator._jobs.worker import GroupView, StatusSnapshot
from ray_estimator._runtime.train.step_watchdog import StepWatchdog


def view(*statuses: StatusSnapshot, silent: dict[int, float] | None = None) -> GroupView:
    ranks = range(len(statuses))
    return GroupView(
        "first", 1, dict(enumerate(statuses)), silent or dict.fromkeys(ranks, 0.1), dict.fromkeys(ranks), ()
    )


def at_step(step: int, phase: str = "in a step", secs: float = 1.0) -> StatusSnapshot:
    return StatusSnapshot(phase, secs, step, 0.5, None)


def test_steps_that_end_keep_the_run_alive() -> None:
    watch = StepWatchdog(10, now=0)
    for second in range(100):
        assert watch.check(view(at_step(second), at_step(second)), now=second * 9) is None


def test_a_new_phase_counts_as_progress() -> None:
    watch = StepWatchdog(10, now=0)
    assert watch.check(view(at_step(-1, "building the graph")), now=8) is None
    assert watch.check(view(at_step(-1, "opening the session")), now=16) is None
    assert watch.check(view(at_step(-1, "opening the session")), now=27) is not None


def test_the_error_lists_waiting_and_unresponsive_ranks() -> None:
    watch = StepWatchdog(10, now=0)
    stuck = view(at_step(5, secs=11), at_step(5), silent={0: 0.2, 1: 11.0})
    assert watch.check(stuck, now=1) is None
    error = watch.check(stuck, now=12)
    assert error is not None
    assert error.step == 5
    assert error.waiting == {0: "in a step for 11 s"}
    assert error.silent == {1: 11.0}
    assert "rank 1 for 11 s" in str(error)


def test_without_a_timeout_there_is_no_error() -> None:
    watch = StepWatchdog(None, now=0)
    assert watch.check(view(at_step(5)), now=10**9) is None


def test_a_run_without_workers_does_not_time_out() -> None:
    watch = StepWatchdog(10, now=0)
    assert watch.check(GroupView(None, 0, {}, {}, {}, ()), now=1000) is None


def test_a_hung_group_is_reported_once_and_the_next_one_is_watched() -> None:
    watch = StepWatchdog(10, now=0)
    stuck = view(at_step(5))
    assert watch.check(stuck, now=1) is None
    assert watch.check(stuck, now=20) is not None
    assert watch.check(stuck, now=1000) is None
    second = GroupView("second", 2, {0: at_step(5)}, {0: 0.1}, {0: None}, ())
    assert watch.check(second, now=1000) is None
    assert watch.check(second, now=1011) is not None
