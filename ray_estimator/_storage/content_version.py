"""Tell whether files have changed without reading them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {
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
"""File attributes that change with the content, as stores name them, in lower-case letters and digits."""


def version_attributes(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the attributes in a store's description of a file that change with its content."""
    named = {"".join(filter(str.isalnum, name)).lower(): value for name, value in info.items()}
    return sorted((name, str(value)) for name, value in named.items() if name in _NAMES)
