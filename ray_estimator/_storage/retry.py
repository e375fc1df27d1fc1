"""Retry operations on stores after transient errors, with exponential back-off."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 5
FIRST_DELAY_SECS = 0.5
TOTAL_SECS = 60.0

logger = logging.getLogger(__name__)


def retrying(call: Callable[[], T], is_transient: Callable[[Exception], bool], redact: Callable[[str], str]) -> T:
    """Return the result of `call`, after at most `ATTEMPTS` attempts, the last no later than `TOTAL_SECS`.

    Args:
        call: An idempotent operation, called again after a transient error.
        is_transient: Whether another attempt may succeed.
        redact: Removes credentials from text for the log.

    Raises:
        Exception: The last error of `call`, unchanged.
    """
    began = time.monotonic()
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except Exception as error:
            # Random, so that processes that failed together do not retry together.
            delay = FIRST_DELAY_SECS * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            if not is_transient(error) or time.monotonic() + delay > began + TOTAL_SECS:
                raise
            reason = redact(f"{type(error).__name__}: {error}")
            logger.warning(
                "Storage request failed (attempt %d of %d, next in %.1f s): %s", attempt, ATTEMPTS, delay, reason
            )
        time.sleep(delay)
    return call()


_TRANSIENT_ERRNOS = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET}


def is_transient_locally(error: Exception) -> bool:
    """Whether an operation on local files may succeed when retried.

    Not after EIO: a second fsync may report success although the data is lost.
    """
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS


_PERMANENT_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    ImportError,
    MemoryError,
)
_PERMANENT_ERRNOS = {
    errno.E2BIG,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EINVAL,
    errno.EMSGSIZE,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOSYS,
    errno.ENOTEMPTY,
    errno.ENOTSUP,
    errno.EPERM,
    errno.EREMCHG,
    errno.EROFS,
}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}


def is_transient_remotely(error: Exception) -> bool:
    """Whether a request to a remote store may succeed when retried.

    Backends have no common error hierarchy. Answers of the store (missing, exists, forbidden, bad arguments, no
    credentials) are permanent; errors with an HTTP status are classified by it; any other may be a network error.
    """
    if isinstance(error, _PERMANENT_ERRORS) or _is_about_credentials(error):
        return False
    status = _status_of(error)
    if status is not None:
        return status in _TRANSIENT_STATUS
    return not (isinstance(error, OSError) and error.errno in _PERMANENT_ERRNOS)


def _is_about_credentials(error: Exception) -> bool:
    return any("credential" in kind.__name__.lower() for kind in type(error).__mro__)


def _status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status of an error or its cause, from any of the attributes in use; None if it has none."""
    if error is None:
        return None
    response = getattr(error, "response", None)
    described = response.get("ResponseMetadata", {}) if isinstance(response, Mapping) else {}
    values = (getattr(error, "status_code", None), getattr(error, "status", None), getattr(error, "code", None))
    for value in (*values, described.get("HTTPStatusCode")):
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return _status_of(error.__cause__)
