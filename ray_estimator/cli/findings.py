"""What will break: values, and how they are gathered."""

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
GONE = "gone"
CALL = "call"

KINDS = (SYNTAX, CONTRIB, ESTIMATOR, PLACEMENT, REMOTE_FILE, LAYERS, PRIVATE, GONE, CALL)


@dataclass(frozen=True)
class Finding:
    """Something in a source that will break.

    Attributes:
        kind: One of `KINDS`.
        what: What it is.
        cure: What to do.
    """

    kind: str
    what: str
    cure: str


@dataclass(frozen=True)
class Found:
    """A finding in a file, with all the places where it is.

    Attributes:
        path: The file.
        finding: What was found.
        places: Where, in order.
    """

    path: Path
    finding: Finding
    places: tuple[Place, ...]

    @property
    def at(self) -> str:
        """The first place, as editors take it; of a notebook, as a person finds it."""
        first = self.places[0]
        return f"{self.path}, {first}" if first.cell else f"{self.path}:{first}"

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"file": str(self.path), "places": [asdict(place) for place in self.places], **asdict(self.finding)}


def gathered(path: Path, found: Iterable[tuple[Finding, Place]]) -> list[Found]:
    """The findings of a file, each once, in the order of their first places."""
    places: dict[Finding, set[Place]] = {}
    for finding, place in found:
        places.setdefault(finding, set()).add(place)
    all_found = [Found(path, finding, tuple(sorted(at))) for finding, at in places.items()]
    return sorted(all_found, key=lambda each: (each.places, each.finding.kind, each.finding.what))


def counts(found: Iterable[Found]) -> Mapping[Path, Mapping[str, int]]:
    """How many findings of each kind a file has."""
    table: dict[Path, dict[str, int]] = {}
    for each in found:
        kinds = table.setdefault(each.path, {})
        kinds[each.finding.kind] = kinds.get(each.finding.kind, 0) + 1
    return table
