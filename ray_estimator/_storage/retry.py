"""What is tried again: requests that a store could not serve just now."""

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


def retrying(call: Callable[[], T], is_transient: Callable[[Exception], bool], shown: Callable[[str], str]) -> T:
    """What `call` returns, after at most `ATTEMPTS` calls; none begins later than `TOTAL_SECS` after the first.

    Args:
        call: Is called again after a transient error, so it must not mind having happened already.
        is_transient: Whether another call may succeed.
        shown: Makes a text fit for the log.

    Raises:
        Exception: The last error of `call`, as it is.
    """
    began = time.monotonic()
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except Exception as error:
            # Doubled each time, and spread, so that many who failed together do not come back together.
            delay = FIRST_DELAY_SECS * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            if not is_transient(error) or time.monotonic() + delay > began + TOTAL_SECS:
                raise
            reason = shown(f"{type(error).__name__}: {error}")
            logger.warning("The store failed (attempt %d of %d, next in %.1f s): %s", attempt, ATTEMPTS, delay, reason)
        time.sleep(delay)
    return call()


_NETWORK_FILE_SYSTEM = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET}


def is_transient_locally(error: Exception) -> bool:
    """Whether an operation on local files may succeed if tried again.

    Not after EIO: an fsync that failed may report success at the second try, though the data are lost.
    """
    return isinstance(error, OSError) and error.errno in _NETWORK_FILE_SYSTEM


_ANSWERS = (
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
_ANSWERS_BY_NUMBER = {
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
    """Whether a request to a store behind a network may succeed if sent again.

    Backends have no common tree of errors. What is plainly an answer (missing, exists, forbidden, bad arguments, no
    credentials) is final; what has an HTTP status goes by that; anything else may be the network's doing.
    """
    if isinstance(error, _ANSWERS) or _says_credentials(error):
        return False
    status = _status_of(error)
    if status is not None:
        return status in _TRANSIENT_STATUS
    return not (isinstance(error, OSError) and error.errno in _ANSWERS_BY_NUMBER)


def _says_credentials(error: Exception) -> bool:
    return any("credential" in kind.__name__.lower() for kind in type(error).__mro__)


def _status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an error, or the one behind it, carries under one of the names in use."""
    if error is None:
        return None
    response = getattr(error, "response", None)
    described = response.get("ResponseMetadata", {}) if isinstance(response, Mapping) else {}
    values = (getattr(error, "status_code", None), getattr(error, "status", None), getattr(error, "code", None))
    for value in (*values, described.get("HTTPStatusCode")):
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return _status_of(error.__cause__)
