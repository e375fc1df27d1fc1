"""Findings in sources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_estimator.cli.sources import Place

SYNTAX = "syntax"
CONTRIB = "contrib"
ESTIMATOR = "tf.estimator"
PLACEMENT = "placement"
REMOTE_FILE = "remote file"
LAYERS = "legacy Keras"
PRIVATE = "private name"
REMOVED = "removed"
CALL = "call"

KINDS = (SYNTAX, CONTRIB, ESTIMATOR, PLACEMENT, REMOTE_FILE, LAYERS, PRIVATE, REMOVED, CALL)


@dataclass(frozen=True)
class Finding:
    """Code that will break.

    Attributes:
        kind: One of `KINDS`.
        what: What is wrong.
        fix: How to fix it.
    """

    kind: str
    what: str
    fix: str


@dataclass(frozen=True)
class Found:
    """A finding in a file, with all its places.

    Attributes:
        path: The file.
        finding: The finding.
        places: Its places, in order.
    """

    path: Path
    finding: Finding
    places: tuple[Place, ...]

    @property
    def at(self) -> str:
        """Return the first place, in the format of editors; for a notebook, its cell and line."""
        first = self.places[0]
        return f"{self.path}, {first}" if first.cell else f"{self.path}:{first}"

    def to_json(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"file": str(self.path), "places": [asdict(place) for place in self.places], **asdict(self.finding)}


def group_findings(path: Path, found: Iterable[tuple[Finding, Place]]) -> list[Found]:
    """Return the distinct findings of a file, in the order of their first places."""
    places: dict[Finding, set[Place]] = {}
    for finding, place in found:
        places.setdefault(finding, set()).add(place)
    all_found = [Found(path, finding, tuple(sorted(at))) for finding, at in places.items()]
    return sorted(all_found, key=lambda each: (each.places, each.finding.kind, each.finding.what))


def counts(found: Iterable[Found]) -> Mapping[Path, Mapping[str, int]]:
    """Return the number of findings by file and kind."""
    table: dict[Path, dict[str, int]] = {}
    for each in found:
        kinds = table.setdefault(each.path, {})
        kinds[each.finding.kind] = kinds.get(each.finding.kind, 0) + 1
    return table
