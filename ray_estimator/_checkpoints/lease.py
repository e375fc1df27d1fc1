"""Who may write in a model_dir: one driver at a time, and of its groups of workers the newest.

    model_dir/.writers/
      00000003.json        the third driver to train here: who it is, and a beat that grows while it lives
      00000003-0002.json   the chief of the second group of workers that it started

A driver takes the lease when it creates the file of the next generation, which only one can. Nothing is deleted or
replaced for that, so generations only grow, and `(generation, attempt)` is a fencing token: whoever finds a greater
one in the listing is no longer the writer, however long it slept. Only its owner writes a file again. Later owners
sweep all but the newest two generations.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial

from ray_estimator._process.identity import Process
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import ModelDirAccessError, ModelDirInUseError, WriterFencedError

HEARTBEAT_SECS = 5.0
TAKEOVER_SECS = 30.0
_POLL_SECS = 1.0
_NAME = re.compile(r"(\d{8,})(?:-(\d{4,}))?\.json")

_held_here: set[str] = set()
"""Nonces of the leases that this process holds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Token:
    """A writer's place in the order of writers; the greatest in `.writers/` is the one that may write.

    Attributes:
        generation: Which driver, from 1.
        attempt: Which of the driver's groups of workers, from 1; 0 for the driver itself.
    """

    generation: int
    attempt: int = 0

    def __str__(self) -> str:
        return f"{self.generation}.{self.attempt}"

    @property
    def file_name(self) -> str:
        """The name of the writer's file."""
        return f"{self.generation:08d}" + (f"-{self.attempt:04d}" if self.attempt else "") + ".json"

    @classmethod
    def of(cls, file_name: str) -> Token | None:
        """The token that a file is named for; None if it is another kind of file."""
        match = _NAME.fullmatch(file_name)
        return None if match is None else cls(int(match.group(1)), int(match.group(2) or 0))


@dataclass(frozen=True)
class Record:
    """What a writer's file says.

    Attributes:
        writer: The process.
        nonce: Tells the writer from any other that created the same file.
        since: When it began, in seconds since the epoch by its own clock.
        beat: Grows while it lives.
        released: Whether it has ended.
    """

    writer: Process
    nonce: str
    since: int
    beat: int = 0
    released: bool = False

    @classmethod
    def begin(cls, writer: Process) -> Record:
        """The record of a writer that begins now."""
        return cls(writer, uuid.uuid4().hex, int(time.time()))

    @classmethod
    def from_bytes(cls, content: bytes) -> Record | None:
        """What `to_bytes` made; None for anything else."""
        try:
            fields = json.loads(content)
            writer = Process(*(fields["writer"][name] for name in ("host", "pid", "machine", "started")))
            return cls(writer, fields["nonce"], int(fields["since"]), fields["beat"], fields["released"])
        except (ValueError, TypeError, KeyError):
            return None

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.writer.pid} on {self.writer.host}, since {datetime.fromtimestamp(self.since, UTC)}"


class _Writers:
    """The files in `.writers/`."""

    def __init__(self, model_dir: str, storage: Storage) -> None:
        self.shown = storage.redacted(model_dir)
        self._storage = storage
        self._folder = storage.join(storage.normalize(model_dir), ".writers")

    def tokens(self) -> list[Token]:
        """Who is or was a writer, in no order."""
        tokens = map(Token.of, self._storage.list_dir(self._folder))
        return [token for token in tokens if token is not None]

    def newest(self) -> Token:
        """Who may write; generation 0 if nobody ever did."""
        return max(self.tokens(), default=Token(0))

    def read(self, token: Token) -> bytes:
        """The content of a writer's file; empty if there is none."""
        try:
            return self._storage.read_bytes(self._url(token))
        except FileNotFoundError:
            return b""

    def create(self, token: Token, record: Record) -> bool:
        """Creates a writer's file; False if another was faster."""
        # Look, whatever the answer: a request that is sent again because its answer was lost meets its own file, and
        # some stores do not refuse.
        with contextlib.suppress(FileExistsError):
            self._storage.create_bytes(self._url(token), record.to_bytes())
        found = Record.from_bytes(self.read(token))
        return found is not None and found.nonce == record.nonce

    def write(self, token: Token, record: Record) -> None:
        """Replaces a writer's own file."""
        self._storage.write_bytes(self._url(token), record.to_bytes())

    def require_newest(self, token: Token, tokens: Sequence[Token] | None = None) -> None:
        """Raises `WriterFencedError` if there is a newer writer than `token`, now or in a listing."""
        newest = max(self.tokens() if tokens is None else tokens, default=token)
        if newest > token:
            raise self.fenced_by(newest)

    def fenced_by(self, token: Token) -> WriterFencedError:
        """The error of a writer that finds the newer `token`."""
        record = Record.from_bytes(self.read(token))
        return WriterFencedError(self.shown, "another writer" if record is None else str(record))

    def sweep(self, tokens: Iterable[Token]) -> None:
        """Deletes the files of earlier writers. What cannot be deleted is left behind, with a warning."""
        for token in tokens:
            try:
                self._storage.remove(self._url(token))
            except Exception as error:  # Stores raise what they like, and no training should end for it.
                self.warn(f"delete {token.file_name}", error)

    def warn(self, what: str, error: Exception) -> None:
        """Logs what could not be done, and why."""
        logger.warning("%s", self._storage.redacted(f"Could not {what} in {self._folder}: {error}"))

    def _url(self, token: Token) -> str:
        return self._storage.join(self._folder, token.file_name)


class Lease:
    """The right to write in a model_dir, as `take` gives it. Held on the driver.

    Attributes:
        generation: Grows with each driver that takes the lease.
    """

    def __init__(self, writers: _Writers, generation: int, record: Record) -> None:
        self.generation = generation
        self._writers = writers
        self._record = record
        self._pid = os.getpid()

    def beat(self) -> None:
        """Shows that the owner lives. If the store cannot be reached, that is logged, and the next beat tries again.

        Raises:
            WriterFencedError: Another driver has taken the lease meanwhile.
        """
        try:
            self._beat()
        except WriterFencedError:
            raise
        except Exception as error:  # Stores raise what they like. The lease is ours until another takes it.
            self._writers.warn("renew the lease", error)

    def _beat(self) -> None:
        own = Token(self.generation)
        newest = Token(self._writers.newest().generation)
        found = Record.from_bytes(self._writers.read(own))
        if newest > own or (found is not None and found.nonce != self._record.nonce):
            raise self._writers.fenced_by(newest)
        self._record = replace(self._record, beat=self._record.beat + 1)
        self._writers.write(own, self._record)

    def release(self) -> None:
        """Lets the next driver have it at once. If that fails, the next one waits for a sign of life."""
        if self._pid != os.getpid():
            return  # A fork of the owner.
        _held_here.discard(self._record.nonce)
        try:
            self._writers.write(Token(self.generation), replace(self._record, released=True))
        except Exception as error:  # Stores raise what they like, and the training is done.
            self._writers.warn("release the lease", error)


def take(
    model_dir: str,
    storage: Storage,
    *,
    process: Process | None = None,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> Lease:
    """Takes the lease of a model_dir.

    A lease that was released, or whose owner is known to be dead, is free. Any other is watched: if its owner shows
    life it is in use, if it shows none for `TAKEOVER_SECS`, by the watcher's own clock, it is taken over.

    Args:
        model_dir: Local path or URL.
        storage: Opens it.
        process: Who takes it. None: this process.
        clock: Seconds, from wherever.
        wait: Waits for so many seconds.

    Raises:
        ModelDirInUseError: Another driver, or another thread of this one, trains there.
    """
    writers, process = _Writers(model_dir, storage), process or Process.current()
    while True:
        generation = _free_generation(writers, process, clock, wait)
        lease = _create(writers, generation + 1, process)
        if lease is not None:
            return lease
        wait(_POLL_SECS)


def _free_generation(
    writers: _Writers, process: Process, clock: Callable[[], float], wait: Callable[[float], None]
) -> int:
    """The newest generation, once nobody holds it any more."""
    watched: tuple[int, bytes] | None = None
    watched_since = 0.0
    while True:
        generation = writers.newest().generation
        content = writers.read(Token(generation))
        owner = Record.from_bytes(content)
        if generation == 0 or (owner is not None and _is_free(owner, process)):
            return generation
        if owner is not None and owner.writer == process:
            raise _in_use(writers, owner)
        if watched is None or watched[0] != generation:
            watched, watched_since = (generation, content), clock()
            logger.warning("%s is held by %s. Waiting for a sign of life.", writers.shown, owner or "somebody")
        elif watched[1] != content:
            raise _in_use(writers, owner)
        elif clock() - watched_since >= TAKEOVER_SECS:
            logger.warning("%s showed none for %g s: taking over.", owner or "It", TAKEOVER_SECS)
            return generation
        wait(_POLL_SECS)


def _is_free(owner: Record, process: Process) -> bool:
    """Whether `process` knows that the owner has ended."""
    if owner.released or owner.writer.is_dead():
        return True
    return owner.writer == process and owner.nonce not in _held_here


def _in_use(writers: _Writers, owner: Record | None) -> ModelDirInUseError:
    if owner is None:
        return ModelDirInUseError(writers.shown, "an unknown host", 0, 0)
    return ModelDirInUseError(writers.shown, owner.writer.host, owner.writer.pid, owner.since)


def _create(writers: _Writers, generation: int, process: Process) -> Lease | None:
    """Creates a generation; None if another was faster."""
    record = Record.begin(process)
    _held_here.add(record.nonce)
    if writers.create(Token(generation), record):
        tokens = writers.tokens()
        # Whoever slept since the listing may have filled a gap that was swept.
        if all(token.generation <= generation for token in tokens):
            writers.sweep(token for token in tokens if token.generation < generation - 1)
            return Lease(writers, generation, record)
    _held_here.discard(record.nonce)
    return None


@contextlib.contextmanager
def hold(model_dir: str, storage: Storage, on_loss: Callable[[], None]) -> Iterator[Lease]:
    """Takes the lease of a model_dir, and shows life from a thread until the block ends. Runs on the driver.

    A store that cannot be reached does not end the training: the lease stays the owner's until another has taken it.

    Args:
        model_dir: Local path or URL.
        storage: Opens it.
        on_loss: Called in that thread if another driver has taken the lease; to end the block with an error.

    Raises:
        ModelDirInUseError: Another driver, or another thread of this one, trains there.
        WriterFencedError: In place of an error that ends the block after the lease was lost.
    """
    lease = take(model_dir, storage)
    ended = threading.Event()
    losses: list[WriterFencedError] = []

    def keep_beating() -> None:
        while not ended.wait(HEARTBEAT_SECS):
            try:
                lease.beat()
            except WriterFencedError as loss:
                losses.append(loss)
                on_loss()
                return

    thread = threading.Thread(target=keep_beating, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    except Exception as error:
        if losses and not isinstance(error, WriterFencedError):
            raise losses[0] from error
        raise
    finally:
        ended.set()
        thread.join(TAKEOVER_SECS)
        lease.release()


def claim(model_dir: str, storage: Storage, token: Token) -> Callable[[], None]:
    """Makes this process the writer of its driver's generation. Runs on the chief, before it restores.

    Args:
        model_dir: Local path or URL.
        storage: Opens it.
        token: The driver's generation, and a number for the group that grows with each start.

    Returns:
        The fence, to be called around every write that publishes: it raises `WriterFencedError` once there is a newer
        writer. It costs one listing.

    Raises:
        WriterFencedError: There is one already.
        ModelDirAccessError: The driver's lease is not to be seen here, so this is another directory.
    """
    writers = _Writers(model_dir, storage)
    writers.write(token, Record.begin(Process.current()))
    tokens = writers.tokens()
    writers.require_newest(token, tokens)
    if Token(token.generation) not in tokens:
        raise ModelDirAccessError.not_shared(writers.shown, f"the chief on host {socket.gethostname()}")
    of_this_driver = (old for old in tokens if old.generation == token.generation)
    writers.sweep(old for old in of_this_driver if 0 < old.attempt < token.attempt - 1)
    return partial(writers.require_newest, token)


def last_driver(model_dir: str, storage: Storage) -> Record | None:
    """What the newest driver that took the lease says of itself; None if nobody ever did, or its file is damaged."""
    writers = _Writers(model_dir, storage)
    return Record.from_bytes(writers.read(Token(writers.newest().generation)))
