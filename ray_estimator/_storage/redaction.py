"""Keep secrets out of logs and errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_SECRET = re.compile(r"key|secret|token|passw|credential|sas|connection_string|auth", re.IGNORECASE)


USER_IN_URL = re.compile(r"(\w://)[^/@\s]+@")


_SHORTEST_SECRET = 4


def secrets_in(options: Any, is_secret: bool = False) -> Iterator[str]:
    """The texts in fsspec options that are credentials, by the names of the options."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from secrets_in(value, is_secret or _SECRET.search(str(name)) is not None)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from secrets_in(value, is_secret)
    elif is_secret and isinstance(options, str) and len(options) >= _SHORTEST_SECRET:
        yield options
