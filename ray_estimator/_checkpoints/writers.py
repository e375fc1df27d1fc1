"""The files by which the writers of a model_dir tell each other apart.

    model_dir/.writers/
      00000003.json        the third driver that trained here: its process, and a counter that grows while it runs
      00000003-0002.json   the chief of the second worker group that this driver started

Files are created, never replaced by another writer, so `(generation, attempt)` only grows and is a fencing token: a
writer that finds a greater token in the listing has lost its right to write, however long it was suspended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ray_estimator._process.identity import Process
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import WriterFencedError

_NAME = re.compile(r"(\d{8,})(?:-(\d{4,}))?\.json")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Token:
    """A writer's fencing token; the owner of the greatest one in `.writers/` may write.

    Attributes:
        generation: Number of the driver, from 1.
        attempt: Number of the driver's worker group, from 1; 0 for the driver itself.
    """

    generation: int
    attempt: int = 0

    def __str__(self) -> str:
        return f"{self.generation}.{self.attempt}"

    @property
    def file_name(self) -> str:
        """Base name of the writer's file."""
        return f"{self.generation:08d}" + (f"-{self.attempt:04d}" if self.attempt else "") + ".json"

    @classmethod
    def of(cls, file_name: str) -> Token | None:
        """Parse the token from the name of a writer's file; None for any other file."""
        match = _NAME.fullmatch(file_name)
        return None if match is None else cls(int(match.group(1)), int(match.group(2) or 0))


@dataclass(frozen=True)
class Record:
    """The content of a writer's file.

    Attributes:
        writer: The process.
        nonce: Distinguishes the writer from others that created the same file.
        since: Start time, in seconds since the epoch by the writer's clock.
        beat: Heartbeat counter.
        released: Whether the writer has finished.
    """

    writer: Process
    nonce: str
    since: int
    beat: int = 0
    released: bool = False

    @classmethod
    def begin(cls, writer: Process) -> Record:
        """Return the first record of a writer that starts now."""
        return cls(writer, uuid.uuid4().hex, int(time.time()))

    @classmethod
    def from_bytes(cls, content: bytes) -> Record | None:
        """Parse the output of `to_bytes`; None for anything else."""
        try:
            fields = json.loads(content)
            writer = Process(*(fields["writer"][name] for name in ("host", "pid", "machine", "started")))
            return cls(writer, fields["nonce"], int(fields["since"]), fields["beat"], fields["released"])
        except (ValueError, TypeError, KeyError):
            return None

    def to_bytes(self) -> bytes:
        """Serialize as JSON."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.writer.pid} on {self.writer.host}, since {datetime.fromtimestamp(self.since, UTC)}"


class Writers:
    """The files in `.writers/`.

    Attributes:
        redacted_model_dir: The model_dir for logs and errors.

    Args:
        model_dir: Local path or URL.
        storage: Accesses it.
    """

    def __init__(self, model_dir: str, storage: Storage) -> None:
        self.redacted_model_dir = storage.redacted(model_dir)
        self._storage = storage
        self._folder = storage.join(storage.normalize(model_dir), ".writers")

    def tokens(self) -> list[Token]:
        """Return the tokens of present and earlier writers, unordered."""
        tokens = map(Token.of, self._storage.list_dir(self._folder))
        return [token for token in tokens if token is not None]

    def newest(self) -> Token:
        """Return the greatest token; generation 0 if there was no writer yet."""
        return max(self.tokens(), default=Token(0))

    def read(self, token: Token) -> bytes:
        """Return the content of a writer's file; empty if it is missing."""
        try:
            return self._storage.read_bytes(self._url(token))
        except FileNotFoundError:
            return b""

    def create(self, token: Token, record: Record) -> bool:
        """Create a writer's file; False if another writer was faster."""
        # Read it back either way: a retried request whose first response was lost finds its own file, and some stores
        # do not refuse to replace a file.
        with contextlib.suppress(FileExistsError):
            self._storage.create_bytes(self._url(token), record.to_bytes())
        found = Record.from_bytes(self.read(token))
        return found is not None and found.nonce == record.nonce

    def write(self, token: Token, record: Record) -> None:
        """Replace a writer's own file."""
        self._storage.write_bytes(self._url(token), record.to_bytes())

    def require_newest(self, token: Token, tokens: Sequence[Token] | None = None) -> None:
        """Raise `WriterFencedError` if a greater token exists, in `tokens` or, by default, in a new listing."""
        newest = max(self.tokens() if tokens is None else tokens, default=token)
        if newest > token:
            raise self.fenced_by(newest)

    def fenced_by(self, token: Token) -> WriterFencedError:
        """Return the error for a writer that finds the greater `token`."""
        record = Record.from_bytes(self.read(token))
        return WriterFencedError(self.redacted_model_dir, "another writer" if record is None else str(record))

    def delete(self, tokens: Iterable[Token]) -> None:
        """Delete the files of earlier writers. Files that cannot be deleted are left, with a warning."""
        for token in tokens:
            try:
                self._storage.remove(self._url(token))
            except Exception as error:  # Depends on the store; training continues without it.
                self.warn(f"delete {token.file_name}", error)

    def warn(self, action: str, error: Exception) -> None:
        """Log an action that failed, and its error."""
        logger.warning("%s", self._storage.redacted(f"Could not {action} in {self._folder}: {error}"))

    def _url(self, token: Token) -> str:
        return self._storage.join(self._folder, token.file_name)


def last_driver(model_dir: str, storage: Storage) -> Record | None:
    """Return the record of the newest driver; None if there was none, or its file is damaged."""
    writers = Writers(model_dir, storage)
    return Record.from_bytes(writers.read(Token(writers.newest().generation)))
