"""What a person sees while training runs: a live line on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from ray_estimator._jobs import GroupView

_PLAIN_SECS = 2.0


class Progress:
    """Shows step, loss, examples/s and ETA of a training run.

    Args:
        last_step: Where the run ends, if that is known.
        console: Where to show it; standard error if None.
        clock: Seconds; for tests.
    """

    def __init__(
        self, last_step: int | None, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._last_step = last_step
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._live = Live(console=self._console, transient=True) if _is_lively(self._console) else None
        self._began_at: float | None = None
        self._began_step = 0
        self._shown = ""
        self._shown_at = -_PLAIN_SECS
        self._group = 0

    def __enter__(self) -> Progress:
        """Begins to show."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the last line standing."""
        if self._live is not None:
            self._live.stop()
        if self._shown and self._live is not None:
            self._console.print(self._shown, highlight=False)

    def show(self, view: GroupView) -> None:
        """Shows the newest state of the run."""
        if view.number > self._group:
            self._group, self._began_at = view.number, None
            if view.number > 1:
                cause = view.failures[-1] if view.failures else "a worker was lost"
                self._console.print(f"restart {view.number - 1}: {cause}", highlight=False)
        line = self._line(view)
        if line is None:
            return
        now = self._clock()
        if self._live is not None:
            self._live.update(Text(line))
        elif line != self._shown and (now - self._shown_at >= _PLAIN_SECS or self._is_last(view)):
            self._console.print(line, highlight=False)
            self._shown_at = now
        self._shown = line

    def _line(self, view: GroupView) -> str | None:
        chief = view.vitals.get(0)
        if chief is None:
            return None
        if chief.step < 0 or chief.loss is None:
            return f"training: {chief.phase}"
        if self._began_at is None:
            self._began_at, self._began_step = self._clock(), chief.step
        target = f"/{self._last_step}" if self._last_step is not None else ""
        parts = [f"step {chief.step}{target}", f"loss {chief.loss:.4g}"]
        if chief.examples_per_sec is not None:
            parts.append(f"{chief.examples_per_sec:,.0f} examples/s")
        eta = self._eta_secs(chief.step)
        if eta is not None:
            parts.append(f"ETA {eta // 60:.0f}:{eta % 60:02.0f}")
        return "training: " + "  ".join(parts)

    def _eta_secs(self, step: int) -> float | None:
        made = step - self._began_step
        if self._last_step is None or self._began_at is None or made <= 0:
            return None
        return (self._clock() - self._began_at) / made * max(self._last_step - step, 0)

    def _is_last(self, view: GroupView) -> bool:
        return self._last_step is not None and view.vitals[0].step >= self._last_step


def _is_lively(console: Console) -> bool:
    return console.is_terminal or console.is_jupyter
