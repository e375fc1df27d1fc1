"""Training progress: a live line on a terminal or in a notebook, plain lines otherwise."""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

if TYPE_CHECKING:
    from ray_estimator._jobs.worker import GroupView, StatusSnapshot
    from ray_estimator.config import RunConfig

_PLAIN_SECS = 2.0
_PLAIN_SHARE = 0.1
_BAR_WIDTH = 24


class Display(Protocol):
    """A place where progress is shown."""

    def start(self) -> None:
        """Start the display."""

    def update(self, line: str, done: float | None, *, is_last: bool) -> None:
        """Replace the current line. `done` is the completed fraction of the run, None if unknown."""

    def print(self, line: str) -> None:
        """Print a line that is not replaced."""

    def stop(self) -> None:
        """Stop the display and keep the last line."""


class Progress:
    """The progress of one training run.

    Args:
        last_step: Last global step of the run; None if unknown.
        display: Where to show it.
        clock: Returns seconds; for tests.
    """

    def __init__(self, last_step: int | None, display: Display, clock: Callable[[], float] = time.monotonic) -> None:
        self._last_step = last_step
        self._display = display
        self._clock = clock
        self._began_at: float | None = None
        self._began_step = 0
        self._group = 0

    def __enter__(self) -> Progress:
        """Start the display."""
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the display."""
        self._display.stop()

    def show(self, view: GroupView) -> None:
        """Show the current state of the run."""
        if view.number > self._group:
            self._group, self._began_at = view.number, None
            if view.number > 1:
                cause = view.failures[-1] if view.failures else "a worker was lost"
                self._display.print(f"restart {view.number - 1}: {cause}")
        chief = view.statuses.get(0)
        if chief is None:
            return
        if chief.step < 0 or chief.loss is None:
            self._display.update(f"training: {chief.phase}", None, is_last=False)
            return
        if self._began_at is None:
            self._began_at, self._began_step = self._clock(), chief.step
        done = chief.step / self._last_step if self._last_step else None
        self._display.update(self._line(chief), done, is_last=done is not None and done >= 1)

    def _line(self, chief: StatusSnapshot) -> str:
        target = f"/{self._last_step}" if self._last_step is not None else ""
        parts = [f"step {chief.step}{target}", f"loss {chief.loss:.4g}"]
        if chief.examples_per_sec is not None:
            parts.append(f"{chief.examples_per_sec:,.0f} examples/s")
        elif chief.step_secs:
            parts.append(f"{1 / chief.step_secs:,.1f} steps/s")
        if chief.input_wait is not None:
            parts.append(f"input wait {chief.input_wait:.0%}")
        eta = self._eta_secs(chief.step)
        if eta is not None:
            parts.append(f"ETA {_clock_time(eta)}")
        if chief.publishing_step is not None:
            parts.append(f"saving {chief.publishing_step}")
        elif chief.published_step is not None:
            parts.append(f"checkpoint {chief.published_step}")
        return "training: " + "  ".join(parts)

    def _eta_secs(self, step: int) -> float | None:
        made = step - self._began_step
        if self._last_step is None or self._began_at is None or made <= 0:
            return None
        return (self._clock() - self._began_at) / made * max(self._last_step - step, 0)


def make_progress(config: RunConfig, last_step: int | None) -> Progress:
    """Return the progress of a run to `last_step`, hidden if the config says so."""
    return Progress(last_step, display_for(_console()) if config.progress else NoDisplay())


def print_line(config: RunConfig, line: str) -> None:
    """Print one line, unless the config disables it."""
    if config.progress:
        _print(_console(), line)


# Displays


class NoDisplay:
    """A display that shows nothing."""

    def start(self) -> None:
        """Do nothing."""

    def update(self, line: str, done: float | None, *, is_last: bool) -> None:
        """Do nothing."""

    def print(self, line: str) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class PlainLines:
    """Lines at intervals that grow with the duration of the run."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._shown = ""
        self._shown_at = -_PLAIN_SECS

    def start(self) -> None:
        """Record the start time."""
        self._began_at = self._clock()

    def update(self, line: str, done: float | None, *, is_last: bool) -> None:
        """Print the line if the interval has passed, or if it is the last one."""
        now = self._clock()
        is_due = now - self._shown_at >= max(_PLAIN_SECS, _PLAIN_SHARE * (now - self._began_at))
        if line != self._shown and (is_due or is_last):
            self.print(line)
            self._shown, self._shown_at = line, now

    def print(self, line: str) -> None:
        """Print the line."""
        _print(self._console, line)

    def stop(self) -> None:
        """Do nothing."""


class LiveLine:
    """The bottom line of a terminal. Other output is printed above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._shown = ""

    def start(self) -> None:
        """Start the live display."""
        self._live.start()

    def update(self, line: str, done: float | None, *, is_last: bool) -> None:
        """Replace the line."""
        self._live.update(_with_bar(self._console, line, done), refresh=True)
        self._shown = line

    def print(self, line: str) -> None:
        """Print the line above."""
        _print(self._console, line)

    def stop(self) -> None:
        """Print the last line without the bar."""
        self._live.stop()
        if self._shown:
            self.print(self._shown)


class NotebookLine:
    """A line of a notebook's output that is replaced. Unlike rich's live display it needs no widgets."""

    def __init__(self, console: Console, display: Callable[..., Any]) -> None:
        self._console = console
        self._display = display
        self._handle: Any = None

    def start(self) -> None:
        """Do nothing: the first line creates the output."""

    def update(self, line: str, done: float | None, *, is_last: bool) -> None:
        """Replace the line."""
        data = {"text/plain": _with_bar(Console(file=io.StringIO(), color_system=None), line, done).plain}
        if self._handle is None:
            self._handle = self._display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def print(self, line: str) -> None:
        """Print the line below."""
        _print(self._console, line)

    def stop(self) -> None:
        """Do nothing: the output stays."""


def display_for(console: Console) -> Display:
    """Return the display that fits the console."""
    if console.is_jupyter:
        from IPython.display import display

        return NotebookLine(console, display)
    return LiveLine(console) if console.is_terminal else PlainLines(console)


@functools.cache
def _console() -> Console:
    # Shared, so that everything printed on it appears above its live line.
    return Console(stderr=True)


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _with_bar(console: Console, line: str, done: float | None) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    if done is None:
        return text.append(line)
    label, rest = line.split(": ", 1)
    bar = Text()
    for segment in console.render(ProgressBar(total=1.0, completed=done, width=_BAR_WIDTH)):
        bar.append(segment.text, segment.style)
    bar.align("left", _BAR_WIDTH)
    return text.append(f"{label} ").append_text(bar).append(f" {rest}")


def _clock_time(secs: float) -> str:
    minutes, seconds = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
