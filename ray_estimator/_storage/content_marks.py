"""Tell whether files have changed without reading them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MARKS = {
    "contentmd5",
    "crc32c",
    "created",
    "etag",
    "generation",
    "lastmodified",
    "md5hash",
    "mtime",
    "size",
    "updated",
    "versionid",
}
"""What stores say of a file that changes with its content; their names for it, in letters and digits alone."""


def content_marks(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of what a store says of a file, the parts that change with its content."""
    named = {"".join(filter(str.isalnum, name)).lower(): value for name, value in info.items()}
    return sorted((name, str(value)) for name, value in named.items() if name in _MARKS)
