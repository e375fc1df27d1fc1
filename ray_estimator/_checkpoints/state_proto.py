"""The content of the state file: TensorFlow's CheckpointState as a text proto.

Parsed and serialized without TensorFlow, so that a driver need not import it. Values that the proto has no field for
are in comments, which TensorFlow ignores when reading and drops when it writes the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

UNKNOWN_TIME = 0.0


@dataclass(frozen=True)
class CheckpointState:
    """The content of the state file.

    Attributes:
        paths: The checkpoints, oldest first; the current one last.
        timestamps: Their publication times in seconds since the epoch; 0 if unknown.
        last_preserved_timestamp: Start of the interval to the next preserved checkpoint, in seconds since the epoch.
        manifests: Manifest digests by path; none for checkpoints that TensorFlow published.
        end: How the run that published the current one ended, as JSON; None if it was interrupted.
    """

    paths: tuple[str, ...]
    timestamps: tuple[float, ...]
    last_preserved_timestamp: float | None
    manifests: Mapping[str, str] = field(default_factory=dict)
    end: Mapping[str, Any] | None = None

    def to_text(self) -> str:
        """Serialize as text that TensorFlow can read."""
        lines = [f"model_checkpoint_path: {_quote(path)}" for path in self.paths[-1:]]
        lines += [f"all_model_checkpoint_paths: {_quote(path)}" for path in self.paths]
        lines += [f"all_model_checkpoint_timestamps: {timestamp!r}" for timestamp in self.timestamps]
        if self.last_preserved_timestamp is not None:
            lines.append(f"last_preserved_timestamp: {self.last_preserved_timestamp!r}")
        if self.manifests:
            lines.append(f"# manifests: {json.dumps(dict(self.manifests))}")
        if self.end is not None:
            lines.append(f"# end: {json.dumps(dict(self.end))}")
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def from_text(cls, text: str) -> CheckpointState:
        """Parse the output of TensorFlow or `to_text`.

        Raises:
            ValueError: `text` is not a CheckpointState, or contains no checkpoint.
        """
        fields: dict[str, list[str]] = {}
        for name, value in _parse_fields(text):
            fields.setdefault(name, []).append(value)
        current = fields.get("model_checkpoint_path", [""])[-1]
        if not current:
            raise ValueError("it contains no checkpoint")
        paths = fields.get("all_model_checkpoint_paths", [])
        timestamps = [float(value) for value in fields.get("all_model_checkpoint_timestamps", [])]
        if len(timestamps) != len(paths):
            timestamps = [UNKNOWN_TIME] * len(paths)
        dated = dict(zip(paths, timestamps, strict=True))
        # A user who edits the file to return to an older checkpoint may change only the current one.
        dated[current] = dated.pop(current, UNKNOWN_TIME)
        preserved = fields.get("last_preserved_timestamp")
        manifests = _parse_comment(text, "manifests") or {}
        if not all(isinstance(digest, str) for digest in manifests.values()):
            raise ValueError("expected digests by path after '# manifests:'")
        preserved_at = float(preserved[-1]) if preserved else None
        return cls(tuple(dated), tuple(dated.values()), preserved_at, manifests, _parse_comment(text, "end"))


def _parse_comment(text: str, name: str) -> dict[str, Any] | None:
    comment = re.search(rf"^# {name}: (.*)$", text, re.MULTILINE)
    if comment is None:
        return None
    fields = json.loads(comment.group(1))
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object after '# {name}:'")
    return fields


_BLANK = r"(?:\s|\#.*)*"
_STRING = r""" "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' """
_FIELD = re.compile(rf"(\w+) \s*:\s* (?: ({_STRING}) | ([\w.+-]+) ) {_BLANK}", re.VERBOSE)
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_ONE_LETTER_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


def _parse_fields(text: str) -> Iterator[tuple[str, str]]:
    """Yield the `name: value` pairs of a flat text proto, in order."""
    text = re.sub(rf"^{_BLANK}", "", text)
    position = 0
    while position < len(text):
        field = _FIELD.match(text, position)
        if field is None:
            raise ValueError(f"expected 'name: value', got {text[position : position + 40]!r}")
        name, quoted, bare = field.groups()
        yield name, bare if quoted is None else _unquote(quoted)
        position = field.end()


def _quote(text: str) -> str:
    return '"' + "".join(_quote_byte(byte) for byte in text.encode(errors="surrogateescape")) + '"'


def _quote_byte(byte: int) -> str:
    character = chr(byte)
    if character in '"\\':
        return "\\" + character
    return character if " " <= character <= "~" else f"\\{byte:03o}"


def _unquote(quoted: str) -> str:
    unescaped = _ESCAPE.sub(_unescape, quoted[1:-1].encode(errors="surrogateescape"))
    return unescaped.decode(errors="surrogateescape")


def _unescape(match: re.Match[bytes]) -> bytes:
    octal, hexadecimal, letter = match.groups()
    if letter:
        return _ONE_LETTER_ESCAPES.get(letter, letter)
    return bytes([int(octal, 8) & 0xFF if octal else int(hexadecimal, 16)])
