"""Two programs side by side in one run: rounds, medians, a ratio, and the row of a table.

Other work on the machine changes every time that is measured. The two measures of a round see nearly the same machine,
so it is their ratio that counts; the figure is the median of these ratios.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow.compat.v1 as v1

# Programs that are short: one whole run after the other


def alternated(rounds: int, *programs: Callable[[], Any]) -> list[list[float]]:
    """Seconds of each program in each round. Every second round runs them in the opposite order."""
    seconds: list[list[float]] = [[] for _ in programs]
    for number in range(rounds):
        order = range(len(programs))
        for index in order if number % 2 == 0 else reversed(order):
            began = time.perf_counter()
            programs[index]()
            seconds[index].append(time.perf_counter() - began)
        print(f"round {number + 1} of {rounds}: " + "  ".join(f"{each[-1]:.2f} s" for each in seconds), flush=True)
    return seconds


# Programs that make steps: a stretch of one after a stretch of the other


@dataclass
class Turn:
    """A program's turn among programs of one machine that go on one at a time, for a stretch of steps each.

    They may be threads, processes or groups of processes: a file says whose turn it is. Every process of a group waits
    for the group's turn; the one that leads passes it on and notes how long the stretch took.

    Attributes:
        folder: Where the files are; the same for all programs.
        place: Number of this program, from 0.
        programs: How many programs there are.
        rounds: How many stretches each one makes.
        leads: Whether this process passes the turn on.
    """

    folder: str
    place: int
    programs: int
    rounds: int
    leads: bool = True
    _round: int = -1
    _began: float = 0.0

    def lap(self) -> None:
        """Ends a stretch, and returns when the next may begin. What came before the first call was set-up."""
        if self._round >= 0 and self.leads:
            self._pass_on(time.perf_counter() - self._began)
        self._round += 1
        if self._round < self.rounds:
            self._wait()
        self._began = time.perf_counter()

    def _pass_on(self, seconds: float) -> None:
        with _seconds_file(self.folder, self.place).open("a") as file:
            file.write(f"{seconds!r}\n")
        passed = Path(self.folder, f"passed_{self.place}")
        passed.write_text(str(self._number + 1))
        passed.replace(Path(self.folder, "turn"))

    def _wait(self, timeout_secs: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_secs
        while _whose_turn(self.folder) < self._number:
            if time.monotonic() > deadline:
                raise TimeoutError(f"JobBuilder {self.place} waited {timeout_secs:.0f} s for its turn.")
            time.sleep(0.005)

    @property
    def _number(self) -> int:
        # Who has just stopped still works behind the scenes: each program follows each other one equally often.
        orders = list(itertools.permutations(range(self.programs)))
        return self._round * self.programs + orders[self._round % len(orders)].index(self.place)


def _whose_turn(folder: str) -> int:
    file = Path(folder, "turn")
    return int(file.read_text()) if file.exists() else 0


def _seconds_file(folder: str, place: int) -> Path:
    return Path(folder, f"seconds_{place}")


def seconds_of(folder: str, place: int, *, warm_up: int) -> list[float]:
    """The seconds of a program's stretches, without those in which somebody still warmed up."""
    return [float(line) for line in _seconds_file(folder, place).read_text().split()][warm_up:]


class LapEveryStretch(v1.train.SessionRunHook):
    """Ends a stretch after so many steps."""

    def __init__(self, turn: Turn, steps: int) -> None:
        self._turn = turn
        self._steps = steps
        self._steps_made = 0

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        self._steps_made += 1
        if self._steps_made % self._steps == 0:
            self._turn.lap()


def together(*programs: Callable[[], Any]) -> None:
    """Runs programs in a thread each; raises what the first of them raises."""
    with ThreadPoolExecutor(len(programs)) as threads:
        for running in [threads.submit(program) for program in programs]:
            running.result()


# The table


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
    median, low, high = statistics.median(values), min(values), max(values)
    digits = 0 if median >= 100 else 2
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def report(comparisons: Sequence[Comparison], *, check: bool) -> int:
    """Prints the table; gives the exit status, which is not 0 if goals are checked and one is missed."""
    print(f"\n{len(comparisons[0].ours)} rounds; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    print("\n| median (min to max) | ours | peer | ours / peer | goal | |\n|---|---|---|---|---|---|")
    for comparison in comparisons:
        print(comparison.row())
    return int(check and not all(comparison.is_met for comparison in comparisons))


def arguments(description: str | None, *, rounds: int) -> argparse.Namespace:
    """The command line of a benchmark; `rounds` is the default."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds that count (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a goal is missed")
    options: argparse.Namespace = parser.parse_args()
    return options
