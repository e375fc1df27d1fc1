"""Terminal output of the commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ray_estimator.cli.diagnosis import NOTE, OK, PROBLEM, Check
from ray_estimator.cli.findings import KINDS, Found, counts
from ray_estimator.cli.inspection import CheckpointReport, Report, age_of
from ray_estimator.cli.scanning import Scan

_MARKS = {OK: "[green]ok[/]", NOTE: "[yellow]--[/]", PROBLEM: "[red]!![/]"}
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SHOWN_PLACES = 8


def show_checks(console: Console, checks: Iterable[Check]) -> list[Check]:
    """Print each check when it is done, and return them all."""
    shown = []
    for check in checks:
        shown.append(check)
        console.print(f"{_MARKS[check.status]} [bold]{escape(check.name)}[/]: {escape(check.detail)}")
        if check.fix:
            console.print(f"   {escape(check.fix)}")
    return shown


def show_scan(console: Console, scan: Scan) -> None:
    """Print every finding, and a summary of several files."""
    for each in scan.found:
        console.print(f"[bold]{escape(each.at)}[/]: {escape(each.finding.what)}{escape(_other_places(each))}")
        console.print(f"   {escape(each.finding.fix)}")
    if scan.files > 1 and scan.found:
        console.print(_summary(scan))
    files = "1 file" if scan.files == 1 else f"{scan.files} files"
    findings = "1 finding" if len(scan.found) == 1 else f"{len(scan.found)} findings"
    console.print(f"{files} scanned, {findings}.")


def _other_places(found: Found) -> str:
    others = [str(place) for place in found.places[1:]]
    if not others:
        return ""
    shown = ", ".join(others[:_SHOWN_PLACES])
    more = len(others) - _SHOWN_PLACES
    return f" (also {shown}{f' and {more} more' if more > 0 else ''})"


def _summary(scan: Scan) -> Table:
    table = counts(scan.found)
    kinds = [kind for kind in KINDS if any(kind in row for row in table.values())]
    summary = Table("file", *kinds, "all")
    for path, row in sorted(table.items(), key=lambda item: -sum(item[1].values())):
        summary.add_row(escape(str(path)), *(str(row.get(kind, "")) for kind in kinds), str(sum(row.values())))
    return summary


def show_report(console: Console, report: Report) -> None:
    """Print the report of a model_dir."""
    if report.state_file_defect is not None:
        console.print(f"{_MARKS[PROBLEM]} The state file `checkpoint` is damaged: {escape(report.state_file_defect)}")
    if report.checkpoints:
        console.print(_checkpoints(report.checkpoints))
        for each in report.checkpoints:
            if each.published and each.defect is not None:
                console.print(f"{_MARKS[PROBLEM]} {escape(each.defect)}")
    else:
        console.print("No checkpoints.")
    console.print(f"writer: {escape(_writer(report.writer))}")
    if report.position is not None:
        console.print(f"input: {escape(_position(report.position))}")
    for name, steps in report.metrics.items():
        console.print(_metrics(name, steps))


def _checkpoints(reports: Sequence[CheckpointReport]) -> Table:
    table = Table("checkpoint", "step", "size", "age", "state")
    for each in reports:
        age = age_of(each)
        state = "intact" if each.defect is None else "damaged"
        if not each.has_manifest:
            state += ", without manifest"
        if not each.published:
            state += " (not published)"
        style = "red" if each.published and each.defect else "" if each.published else "dim"
        cells = (each.name, str(each.step), _size(each.size), "" if age is None else _duration(age), state)
        table.add_row(*map(escape, cells), style=style)
    return table


def _writer(writer: Mapping[str, Any] | None) -> str:
    if writer is None:
        return "no training with ray_estimator yet"
    since = datetime.fromtimestamp(writer["since"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    process = f"process {writer['pid']} on {writer['host']}, since {since}"
    return f"none at present; last: {process}" if writer["ended"] else process


def _position(position: Mapping[str, Any]) -> str:
    rows, per_epoch = position["rows"], position["rows_per_epoch"]
    epochs = f", {rows / per_epoch:.2f} epochs of {per_epoch}" if per_epoch else ""
    return f"{rows} rows read at the newest checkpoint{epochs}"


def _metrics(name: str, steps: Mapping[int, Mapping[str, float]]) -> Table:
    names = sorted({metric for metrics in steps.values() for metric in metrics})
    table = Table("step", *map(escape, names), title=escape(name), title_justify="left")
    for step, metrics in steps.items():
        table.add_row(str(step), *(f"{metrics[each]:.6g}" if each in metrics else "" for each in names))
    return table


def _size(size: int) -> str:
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def _duration(seconds: float) -> str:
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"
