"""Two programs side by side in one run: alternated rounds, medians, a ratio, and the row of a table.

Other work on the machine changes every time that is measured. Rounds that alternate see the same machine, so it is the
ratio of the two of a round that counts; the figure is the median of these ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow.compat.v1 as v1

Program = Callable[[], float]
"""Runs once and gives what was measured."""

Lap = Callable[[], None]
"""Ends a stretch of a program and waits until its next one may begin."""


def alternated(rounds: int, *programs: Program) -> list[list[float]]:
    """What each program measured in each round. Every second round runs them in the opposite order."""
    measured: list[list[float]] = [[] for _ in programs]
    for number in range(rounds):
        order = range(len(programs))
        for index in order if number % 2 == 0 else reversed(order):
            measured[index].append(programs[index]())
        print(f"round {number + 1} of {rounds}: " + "  ".join(f"{values[-1]:.4g}" for values in measured), flush=True)
    return measured


def seconds_of(run: Callable[[], Any]) -> float:
    """How long `run` takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turns(*programs: Callable[[Lap], None]) -> list[list[float]]:
    """The seconds of each program's stretches, the first of which hold its set-up.

    The programs run in this process, in a thread each, but only one of them goes on at any time: a stretch of one
    after a stretch of another, round after round. A program calls its lap at the end of each of its stretches.
    """
    ring = deque(range(len(programs)))
    passed = threading.Condition()
    seconds: list[list[float]] = [[] for _ in programs]

    def run(number: int) -> None:
        began = 0.0

        def take_turn() -> None:
            nonlocal began
            with passed:
                passed.wait_for(lambda: ring[0] == number)
            began = time.perf_counter()

        def lap() -> None:
            seconds[number].append(time.perf_counter() - began)
            with passed:
                ring.rotate(-1)
                passed.notify_all()
            take_turn()

        take_turn()
        try:
            programs[number](lap)
        finally:
            with passed:
                ring.remove(number)
                passed.notify_all()

    with ThreadPoolExecutor(len(programs)) as threads:
        for running in [threads.submit(run, number) for number in range(len(programs))]:
            running.result()
    return seconds


@dataclass(frozen=True)
class Comparison:
    """One line of the table: ours over the peer's, round by round, and the goal.

    Attributes:
        what: What is compared.
        ours: Our measure in each round.
        peer: The peer's measure in each round.
        unit: The unit of both.
        goal: What the median ratio shall be: at most this, or at least if `at_least`.
    """

    what: str
    ours: Sequence[float]
    peer: Sequence[float]
    unit: str
    goal: float
    at_least: bool = False

    @property
    def ratios(self) -> list[float]:
        return [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool:
        return self.ratio >= self.goal if self.at_least else self.ratio <= self.goal

    def row(self) -> str:
        """A row of a Markdown table."""
        cells = [
            self.what,
            f"{_span(self.ours)} {self.unit}",
            f"{_span(self.peer)} {self.unit}",
            f"**{self.ratio:.2f}** ({min(self.ratios):.2f} to {max(self.ratios):.2f})",
            f"{'≥' if self.at_least else '≤'} {self.goal:g}",
            "met" if self.is_met else "missed",
        ]
        return f"| {' | '.join(cells)} |"


def _span(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def report(comparisons: Sequence[Comparison], *, check: bool) -> int:
    """Prints the table; gives the exit status, which is not 0 if goals are checked and one is missed."""
    print("\n| median (min to max) | ours | peer | ours / peer | goal | |\n|---|---|---|---|---|---|")
    for comparison in comparisons:
        print(comparison.row())
    return int(check and not all(comparison.is_met for comparison in comparisons))


def arguments(description: str | None, *, rounds: int) -> argparse.Namespace:
    """The command line of a benchmark; `rounds` is the default."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="alternated rounds (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a goal is missed")
    options: argparse.Namespace = parser.parse_args()
    return options


class StepTimer(v1.train.SessionRunHook):  # type: ignore[misc]
    """Takes the time from the end of one step to the end of another; start and end of training do not count.

    It leaves a file for each process that trained in `folder`, since copies of hooks do not come back from workers.
    """

    def __init__(self, folder: str, first: int, last: int) -> None:
        self._folder = folder
        self._first = first
        self._last = last
        self._steps_made = 0

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        self._steps_made += 1
        if self._steps_made == self._first:
            self._began = time.perf_counter()
        elif self._steps_made == self._last:
            seconds = (time.perf_counter() - self._began) / (self._last - self._first)
            Path(self._folder, f"{os.getpid()}.seconds-per-step").write_text(repr(seconds))


def seconds_per_step(folder: str) -> float:
    """What the `StepTimer`s of a run found; of several workers, the slowest."""
    return max(float(file.read_text()) for file in Path(folder).glob("*.seconds-per-step"))
