"""Find the credentials that must not appear in logs and errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_SECRET = re.compile(r"key|secret|token|passw|credential|sas|connection_string|auth", re.IGNORECASE)
_MIN_LENGTH = 4

USER_IN_URL = re.compile(r"(\w://)[^/@\s]+@")


def secrets_in(options: Any, is_secret: bool = False) -> Iterator[str]:
    """Yield the values in fsspec options that are credentials, judging by the option names."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from secrets_in(value, is_secret or _SECRET.search(str(name)) is not None)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from secrets_in(value, is_secret)
    elif is_secret and isinstance(options, str) and len(options) >= _MIN_LENGTH:
        yield options
