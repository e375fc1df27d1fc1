"""Whether a training run still moves, decided from what the driver sees."""

from __future__ import annotations

from ray_estimator._jobs.worker import GroupView, StatusSnapshot
from ray_estimator._runtime.train.step_watchdog import StepWatch


def view(*statuses: StatusSnapshot, silent: dict[int, float] | None = None) -> GroupView:
    ranks = range(len(statuses))
    return GroupView(
        "first", 1, dict(enumerate(statuses)), silent or dict.fromkeys(ranks, 0.1), dict.fromkeys(ranks), ()
    )


def at_step(step: int, phase: str = "in a step", secs: float = 1.0) -> StatusSnapshot:
    return StatusSnapshot(phase, secs, step, 0.5, None)


def test_steps_that_end_keep_the_run_alive() -> None:
    watch = StepWatch(10, now=0)
    for second in range(100):
        assert watch.overdue(view(at_step(second), at_step(second)), now=second * 9) is None


def test_a_phase_that_changes_counts_as_movement() -> None:
    watch = StepWatch(10, now=0)
    assert watch.overdue(view(at_step(-1, "building the graph")), now=8) is None
    assert watch.overdue(view(at_step(-1, "opening the session")), now=16) is None
    assert watch.overdue(view(at_step(-1, "opening the session")), now=27) is not None


def test_the_error_tells_who_waits_and_who_is_silent() -> None:
    watch = StepWatch(10, now=0)
    stuck = view(at_step(5, secs=11), at_step(5), silent={0: 0.2, 1: 11.0})
    assert watch.overdue(stuck, now=1) is None
    error = watch.overdue(stuck, now=12)
    assert error is not None
    assert error.step == 5
    assert error.waiting == {0: "in a step for 11 s"}
    assert error.silent == {1: 11.0}
    assert "rank 1 for 11 s" in str(error)


def test_no_deadline_means_no_error() -> None:
    watch = StepWatch(None, now=0)
    assert watch.overdue(view(at_step(5)), now=10**9) is None


def test_a_run_whose_workers_have_not_joined_is_not_overdue() -> None:
    watch = StepWatch(10, now=0)
    assert watch.overdue(GroupView(None, 0, {}, {}, {}, ()), now=1000) is None


def test_a_group_that_was_given_up_is_not_reported_again_and_the_next_one_is_watched() -> None:
    watch = StepWatch(10, now=0)
    stuck = view(at_step(5))
    assert watch.overdue(stuck, now=1) is None
    assert watch.overdue(stuck, now=20) is not None
    assert watch.overdue(stuck, now=1000) is None
    second = GroupView("second", 2, {0: at_step(5)}, {0: 0.1}, {0: None}, ())
    assert watch.overdue(second, now=1000) is None
    assert watch.overdue(second, now=1011) is not None
