"""Run programs side by side in rounds and report medians and the median of the ratios as a table.

The load of the machine changes over time. Both measurements of a round see nearly the same load, so their ratio is more
stable than the absolute figures.
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

# Short programs: whole runs alternate


def alternate(rounds: int, *programs: Callable[[], Any]) -> list[list[float]]:
    """Return the seconds of each program in each round. Every second round runs them in reverse order."""
    seconds: list[list[float]] = [[] for _ in programs]
    for number in range(rounds):
        order = range(len(programs))
        for index in order if number % 2 == 0 else reversed(order):
            began = time.perf_counter()
            programs[index]()
            seconds[index].append(time.perf_counter() - began)
        print(f"round {number + 1} of {rounds}: " + "  ".join(f"{each[-1]:.2f} s" for each in seconds), flush=True)
    return seconds


# Programs that run steps: blocks of steps alternate


@dataclass
class Turn:
    """The turn of one of several programs on a machine, of which one runs at a time, for a block of steps.

    Programs are threads, processes or groups of processes. A file holds the number of the current turn. All processes
    of a group wait for the group's turn; its leader passes the turn on and records how long the block took.

    Attributes:
        folder: Directory of the files, shared by all programs.
        place: Index of this program, from 0.
        programs: Number of programs.
        rounds: Number of blocks of each program.
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
        """End a block and wait for the turn of the next one. The time before the first call is set-up."""
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
                raise TimeoutError(f"Program {self.place} waited {timeout_secs:.0f} s for its turn.")
            time.sleep(0.005)

    @property
    def _number(self) -> int:
        # A paused program still does background work, so each program follows each other one equally often.
        orders = list(itertools.permutations(range(self.programs)))
        return self._round * self.programs + orders[self._round % len(orders)].index(self.place)


def _whose_turn(folder: str) -> int:
    file = Path(folder, "turn")
    return int(file.read_text()) if file.exists() else 0


def _seconds_file(folder: str, place: int) -> Path:
    return Path(folder, f"seconds_{place}")


def seconds_of(folder: str, place: int, *, warm_up: int) -> list[float]:
    """Return the seconds of a program's blocks, without the first `warm_up` ones."""
    return [float(line) for line in _seconds_file(folder, place).read_text().split()][warm_up:]


class LapEveryBlock(v1.train.SessionRunHook):
    """Ends a block every `steps` steps."""

    def __init__(self, turn: Turn, steps: int) -> None:
        self._turn = turn
        self._steps = steps
        self._steps_made = 0

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        self._steps_made += 1
        if self._steps_made % self._steps == 0:
            self._turn.lap()


def run_concurrently(*programs: Callable[[], Any]) -> None:
    """Run each program in a thread; raise the first error."""
    with ThreadPoolExecutor(len(programs)) as threads:
        for running in [threads.submit(program) for program in programs]:
            running.result()


# The table


@dataclass(frozen=True)
class Comparison:
    """One row of the table: ours against the peer's in each round, and the goal.

    Attributes:
        what: Description of the comparison.
        ours: Our measurement in each round.
        peer: The peer's measurement in each round.
        unit: Unit of both.
        goal: Upper limit of the median ratio, or lower limit if `at_least`.
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
        """Return the row as Markdown."""
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
    """Print the table; return the exit status, which is 1 if `check` is set and a goal is missed."""
    print(f"\n{len(comparisons[0].ours)} rounds; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    print("\n| median (min to max) | ours | peer | ours / peer | goal | |\n|---|---|---|---|---|---|")
    for comparison in comparisons:
        print(comparison.row())
    return int(check and not all(comparison.is_met for comparison in comparisons))


def arguments(description: str | None, *, rounds: int) -> argparse.Namespace:
    """Parse the command line of a benchmark; `rounds` is the default number of rounds."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="number of measured rounds (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a goal is missed")
    options: argparse.Namespace = parser.parse_args()
    return options
