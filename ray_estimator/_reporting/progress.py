"""What a person sees while training runs: a live line on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from ray_estimator._jobs.worker import GroupView, StatusSnapshot
    from ray_estimator.config import RunConfig

_PLAIN_SECS = 2.0
_PLAIN_SHARE = 0.1
_BAR_WIDTH = 24


class Face(Protocol):
    """Where progress is shown."""

    def begin(self) -> None:
        """Makes room for it."""

    def update(self, line: str, done: float | None, *, is_last: bool) -> None:
        """Shows the line instead of the one before; `done` is the part of the way that is behind it, if known."""

    def tell(self, line: str) -> None:
        """Shows a line that stays."""

    def end(self) -> None:
        """Leaves the last line standing."""


class Progress:
    """Shows how a training run goes on.

    Args:
        last_step: Where the run ends, if that is known.
        face: Where to show it.
        clock: Seconds; for tests.
    """

    def __init__(self, last_step: int | None, face: Face, clock: Callable[[], float] = time.monotonic) -> None:
        self._last_step = last_step
        self._face = face
        self._clock = clock
        self._began_at: float | None = None
        self._began_step = 0
        self._group = 0

    def __enter__(self) -> Progress:
        """Begins to show."""
        self._face.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the last line standing."""
        self._face.end()

    def show(self, view: GroupView) -> None:
        """Shows the newest state of the run."""
        if view.number > self._group:
            self._group, self._began_at = view.number, None
            if view.number > 1:
                cause = view.failures[-1] if view.failures else "a worker was lost"
                self._face.tell(f"restart {view.number - 1}: {cause}")
        chief = view.statuses.get(0)
        if chief is None:
            return
        if chief.step < 0 or chief.loss is None:
            self._face.update(f"training: {chief.phase}", None, is_last=False)
            return
        if self._began_at is None:
            self._began_at, self._began_step = self._clock(), chief.step
        done = chief.step / self._last_step if self._last_step else None
        self._face.update(self._line(chief), done, is_last=done is not None and done >= 1)

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


def shown(config: RunConfig, last_step: int | None) -> Progress:
    """The progress of a run to `last_step`, where its config wants it shown."""
    return Progress(last_step, face_for(_console()) if config.progress else Silence())


def tell(config: RunConfig, line: str) -> None:
    """Shows one line, if the config wants that."""
    if config.progress:
        _print(_console(), line)


# Faces


class Silence:
    """Shows nothing."""

    def begin(self) -> None:
        """Nothing."""

    def update(self, line: str, done: float | None, *, is_last: bool) -> None:
        """Nothing."""

    def tell(self, line: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class PlainLines:
    """A line now and then: the longer a run lasts, the rarer they are."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._shown = ""
        self._shown_at = -_PLAIN_SECS

    def begin(self) -> None:
        """Notes when the run began."""
        self._began_at = self._clock()

    def update(self, line: str, done: float | None, *, is_last: bool) -> None:
        """Prints the line if it is time, or the last one."""
        now = self._clock()
        is_time = now - self._shown_at >= max(_PLAIN_SECS, _PLAIN_SHARE * (now - self._began_at))
        if line != self._shown and (is_time or is_last):
            self.tell(line)
            self._shown, self._shown_at = line, now

    def tell(self, line: str) -> None:
        """Prints it."""
        _print(self._console, line)

    def end(self) -> None:
        """Nothing: they all stand."""


class LiveLine:
    """A line of a terminal that changes, below whatever else is printed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._shown = ""

    def begin(self) -> None:
        """Takes the line."""
        self._live.start()

    def update(self, line: str, done: float | None, *, is_last: bool) -> None:
        """Changes it."""
        self._live.update(Text(_with_bar(line, done), no_wrap=True, overflow="ellipsis"), refresh=True)
        self._shown = line

    def tell(self, line: str) -> None:
        """Prints it above."""
        _print(self._console, line)

    def end(self) -> None:
        """Prints the last one for good."""
        self._live.stop()
        if self._shown:
            self.tell(self._shown)


class NotebookLine:
    """A line of a notebook's output that changes. Unlike rich's own it needs no widgets."""

    def __init__(self, console: Console, display: Callable[..., Any]) -> None:
        self._console = console
        self._display = display
        self._handle: Any = None

    def begin(self) -> None:
        """Nothing: it is made by the first line."""

    def update(self, line: str, done: float | None, *, is_last: bool) -> None:
        """Changes it."""
        data = {"text/plain": _with_bar(line, done)}
        if self._handle is None:
            self._handle = self._display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def tell(self, line: str) -> None:
        """Prints it below."""
        _print(self._console, line)

    def end(self) -> None:
        """Nothing: it stands."""


def face_for(console: Console) -> Face:
    """How to show progress there."""
    if console.is_jupyter:
        from IPython.display import display

        return NotebookLine(console, display)
    return LiveLine(console) if console.is_terminal else PlainLines(console)


@functools.cache
def _console() -> Console:
    # One for all: what is printed on it goes above its live line.
    return Console(stderr=True)


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _with_bar(line: str, done: float | None) -> str:
    if done is None:
        return line
    full = round(_BAR_WIDTH * min(max(done, 0.0), 1.0))
    label, rest = line.split(": ", 1)
    return f"{label} {'━' * full}{'╌' * (_BAR_WIDTH - full)} {rest}"


def _clock_time(secs: float) -> str:
    minutes, seconds = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
