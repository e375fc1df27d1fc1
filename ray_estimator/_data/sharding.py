"""Selects the rows of one rank from an ordered stream of blocks.

    blocks ─▶ pieces ─▶ [windows, permuted] ─▶ [from row skip_rows] ─▶ spans of whole global batches
           ─▶ the rank's rows of each span ─▶ tables of about chunk_bytes

Every rank computes its share from the same sequence of (epoch, num_rows). The ranks therefore agree without a
coordinator, and a rank fetches only the blocks that have some of its rows.

Row i of the stream, after shuffling, belongs to global batch i // G with G = batch_size * num_ranks. Rank r owns the
r-th batch_size rows of each global batch. The global batches therefore depend on G, not on the number of ranks.
"""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_estimator._numbers import check_number

logger = logging.getLogger(__name__)

_LONG_PIECE = 8
"""Global batches in a piece that justify an extra table, which avoids a copy of its rows."""

Rows = NDArray[np.int64] | range
"""Ascending or permuted row numbers within a source; a range if they are consecutive."""

S = TypeVar("S")


@dataclass(frozen=True)
class Block:
    """Consecutive rows of the stream, not yet fetched.

    Attributes:
        epoch: The epoch that the rows belong to, from 0.
        num_rows: Number of rows that `load` returns.
        load: Fetches the rows. Called on the rank, at most once, and only if the rank owns some of them.
    """

    epoch: int
    num_rows: int
    load: Callable[[], pa.Table]


@dataclass(frozen=True)
class Sharding:
    """How global batches are split between ranks.

    Attributes:
        rank: This rank, in [0, num_ranks).
        num_ranks: Number of ranks that share a global batch.
        batch_size: Rows per rank and step.
        drop_remainder: Whether to drop the last rows of the stream if they do not fill a global batch.
        chunk_bytes: Approximate maximum size of one table; a table of a single batch may be larger.

    Raises:
        ValueError: A number is out of range.
    """

    rank: int
    num_ranks: int
    batch_size: int
    drop_remainder: bool = False
    chunk_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        check_number("num_ranks", self.num_ranks, integer=True)
        check_number("batch_size", self.batch_size, integer=True)
        check_number("chunk_bytes", self.chunk_bytes, integer=True)
        if not 0 <= self.rank < self.num_ranks:
            raise ValueError(f"rank must be in [0, {self.num_ranks}), got {self.rank}.")

    @property
    def global_batch_size(self) -> int:
        """Rows per step over all ranks."""
        return self.batch_size * self.num_ranks


@dataclass(frozen=True)
class Shuffle:
    """A permutation of rows within consecutive windows, different in each window and epoch.

    Attributes:
        seed: Determines the order. Any integer; the lowest 64 bits are used.
        buffer_rows: Rows in a window. The last window of an epoch may have fewer.

    Raises:
        ValueError: buffer_rows is not positive.
    """

    seed: int
    buffer_rows: int

    def __post_init__(self) -> None:
        check_number("buffer_rows", self.buffer_rows, integer=True)

    def order(self, epoch: int, window: int, num_rows: int) -> NDArray[np.int64]:
        """Return the permutation of one window of `num_rows` rows."""
        return np.random.default_rng([self.seed & (2**64 - 1), epoch, window]).permutation(num_rows)


class Piece(NamedTuple, Generic[S]):
    """The consecutive rows [start, stop) of a source: a block, the index of a block, or a shuffled window."""

    source: S
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """The number of rows, possibly 0."""
        return self.stop - self.start

    def split(self, num_rows: int) -> tuple[Piece[S], Piece[S]]:
        """Return the first `num_rows` rows, and the remaining rows."""
        middle = self.start + num_rows
        return Piece(self.source, self.start, middle), Piece(self.source, middle, self.stop)


def rank_tables(
    blocks: Iterable[Block], sharding: Sharding, shuffle: Shuffle | None = None, *, skip_rows: int = 0
) -> Iterator[pa.Table]:
    """Yield this rank's rows, in order, as tables of whole batches. Runs on every rank, over the same blocks.

    Rows that do not fill a global batch at the end of an epoch start the first global batch of the next epoch. At the
    end of the stream, such rows are split into one contiguous share per rank, with sizes that differ by at most one.
    All ranks drop them if `drop_remainder` is set, or if there are fewer rows than ranks. All ranks therefore yield the
    same number of batches, though not of tables.

    A table is yielded as soon as the blocks taken from `blocks` complete a global batch. A single rank without shuffle
    gets slices that share the blocks' memory. In memory are about one block, or two shuffle windows, and one incomplete
    global batch.

    Args:
        blocks: The blocks of epoch 0, then those of epoch 1, and so on. May be endless.
        sharding: The share to select.
        shuffle: Permutes the rows. None: keep their order.
        skip_rows: Rows of the stream, after shuffling, to skip without fetching them: those that an earlier run
            consumed on all ranks together.

    Yields:
        Tables whose num_rows is a multiple of batch_size, except for the last partial batch.

    Raises:
        ValueError: Epochs are out of order, or a block loads another number of rows than announced.
    """
    pieces: Iterator[Piece[Any]] = _blocks(blocks) if shuffle is None else _windows(_blocks(blocks), shuffle)
    for span in _spans(_without_first(pieces, skip_rows), sharding.global_batch_size):
        rows = _own_rows(sum(piece.num_rows for piece in span), sharding)
        if len(rows):
            yield from _chunks(_gather(span, rows), sharding)


def aligned_ranges(
    num_rows_of_blocks: Iterable[int], batch_size: int, target_rows: Iterable[int], max_rows: int | None = None
) -> Iterator[list[Piece[int]]]:
    """Cut an ordered stream of block lengths into ranges of whole batches, each as pieces of blocks.

    A range is yielded as soon as the lengths taken complete it, and no length is taken beyond `max_rows`.

    Args:
        num_rows_of_blocks: The length of each block, in order.
        batch_size: The length of each range except the last is a multiple of it.
        target_rows: The length of each range, endlessly; rounded up to whole batches.
        max_rows: Maximum number of rows in total, for example steps * batch_size. None: all rows.

    Returns:
        An iterator of lists of (block index, start, stop), without empty pieces.

    Raises:
        ValueError: A number is out of range.
    """
    check_number("batch_size", batch_size, integer=True)
    pieces: Iterator[Piece[int]] = (Piece(index, 0, num_rows) for index, num_rows in enumerate(num_rows_of_blocks))
    if max_rows is not None:
        pieces = _first(pieces, max_rows)
    return _cut(pieces, (-(-rows // batch_size) * batch_size for rows in target_rows))


class _Source(Protocol):
    def select(self, rows: Rows) -> pa.Table:
        """Return the rows with these numbers, in the given order."""


class _BlockRows:
    """The rows of one block, fetched on first use."""

    def __init__(self, block: Block) -> None:
        self.epoch = block.epoch
        self._block: Block | None = block
        self._table: pa.Table = None

    def select(self, rows: Rows) -> pa.Table:
        table = self._fetch()
        if rows[-1] - rows[0] + 1 == len(rows):
            return table.slice(rows[0], len(rows))
        return _take(table, rows)

    def _fetch(self) -> pa.Table:
        if self._block is not None:
            self._table = _load(self._block)
            self._block = None  # releases what the block refers to
        return self._table


class _Window:
    """Several pieces of blocks as one source, in permuted order."""

    def __init__(self, pieces: Sequence[Piece[_BlockRows]], shuffle: Shuffle, epoch: int, index: int) -> None:
        self._pieces = pieces
        self._ends = np.cumsum([piece.num_rows for piece in pieces])
        self._shuffle, self._epoch, self._index = shuffle, epoch, index

    @property
    def num_rows(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return self._shuffle.order(self._epoch, self._index, self.num_rows)

    def select(self, rows: Rows) -> pa.Table:
        rows = self._order[slice(rows.start, rows.stop) if isinstance(rows, range) else rows]
        owners = np.searchsorted(self._ends, rows, side="right")
        needed = np.unique(owners)
        sizes = np.zeros(len(self._pieces), np.int64)
        sizes[needed] = np.diff(self._ends, prepend=0)[needed]
        missing_before = self._ends - np.cumsum(sizes)  # rows of pieces that are not fetched
        fetched = [_all_rows(self._pieces[index]) for index in needed]
        return _take(_concat(fetched), rows - missing_before[owners])


def _blocks(blocks: Iterable[Block]) -> Iterator[Piece[_BlockRows]]:
    epoch = 0
    for block in blocks:
        if block.epoch < epoch:
            raise ValueError(f"Blocks must be in the order of their epochs, got epoch {block.epoch} after {epoch}.")
        epoch = block.epoch
        if block.num_rows:
            yield Piece(_BlockRows(block), 0, block.num_rows)


def _windows(pieces: Iterable[Piece[_BlockRows]], shuffle: Shuffle) -> Iterator[Piece[_Window]]:
    for epoch, pieces_of_epoch in itertools.groupby(pieces, key=lambda piece: piece.source.epoch):
        for index, pieces_of_window in enumerate(_cut(pieces_of_epoch, itertools.repeat(shuffle.buffer_rows))):
            window = _Window(pieces_of_window, shuffle, epoch, index)
            yield Piece(window, 0, window.num_rows)


def _spans(pieces: Iterable[Piece[S]], global_batch_size: int) -> Iterator[list[Piece[S]]]:
    """Yield spans of whole global batches as soon as they are complete, then the remaining rows.

    The batch in which a long piece begins is a separate span, so that the rest of the piece is not copied.
    """
    waiting: list[Piece[S]] = []
    num_waiting = 0
    for piece in pieces:
        num_missing = -num_waiting % global_batch_size
        if waiting and piece.num_rows >= num_missing + _LONG_PIECE * global_batch_size:
            head, piece = piece.split(num_missing)
            yield [*waiting, head]
            waiting, num_waiting = [], 0
        num_waiting += piece.num_rows
        num_over = num_waiting % global_batch_size
        if num_over == num_waiting:
            waiting.append(piece)
            continue
        body, tail = piece.split(piece.num_rows - num_over)
        yield [*waiting, body]
        waiting, num_waiting = [tail] if num_over else [], num_over
    if waiting:
        yield waiting


def _own_rows(num_rows: int, sharding: Sharding) -> Rows:
    """Return the rank's row numbers in a span of whole global batches, or in the last partial batch."""
    if sharding.num_ranks == 1 and not (sharding.drop_remainder and num_rows % sharding.batch_size):
        return range(num_rows)
    rows = np.arange(num_rows)
    if num_rows % sharding.global_batch_size == 0:
        return rows.reshape(-1, sharding.num_ranks, sharding.batch_size)[:, sharding.rank].ravel()
    if sharding.drop_remainder:
        return rows[:0]
    if num_rows < sharding.num_ranks:
        if sharding.rank == 0:
            logger.warning(
                "Dropping the last %d row(s) of the input: too few for one per worker (%d workers).",
                num_rows,
                sharding.num_ranks,
            )
        return rows[:0]
    return np.array_split(rows, sharding.num_ranks)[sharding.rank]


def _gather(span: Sequence[Piece[_Source]], rows: Rows) -> pa.Table:
    """Return the rows of a span with these ascending numbers."""
    tables = []
    first_row = first_own = 0
    for piece in span:
        first_row += piece.num_rows
        own = rows[first_own : bisect.bisect_left(rows, first_row)]
        if len(own):
            tables.append(piece.source.select(_shifted(own, piece.stop - first_row)))
        first_own += len(own)
    return _concat(tables)


def _shifted(rows: Rows, by: int) -> Rows:
    return range(rows.start + by, rows.stop + by) if isinstance(rows, range) else rows + by


def _chunks(table: pa.Table, sharding: Sharding) -> Iterator[pa.Table]:
    # The size of the buffers is an upper bound of nbytes, and a hundred times as fast to compute.
    if table.num_rows <= sharding.batch_size or table.get_total_buffer_size() <= sharding.chunk_bytes:
        yield table
        return
    num_batches = sharding.chunk_bytes * table.num_rows // max(table.nbytes, 1) // sharding.batch_size
    num_rows = max(num_batches, 1) * sharding.batch_size
    for start in range(0, table.num_rows, num_rows):
        yield table.slice(start, num_rows)


def _cut(pieces: Iterable[Piece[S]], num_rows: Iterable[int]) -> Iterator[list[Piece[S]]]:
    """Yield groups with the given numbers of rows as soon as they are complete; the last may have fewer rows."""
    sizes = iter(num_rows)
    num_missing = 0
    group: list[Piece[S]] = []
    for piece in pieces:
        while piece.num_rows:
            # Read the size only now, since it may depend on the pieces seen so far.
            if not group:
                num_missing = next(sizes)
            head, piece = piece.split(min(num_missing, piece.num_rows))
            group.append(head)
            num_missing -= head.num_rows
            if not num_missing:
                yield group
                group = []
    if group:
        yield group


def _first(pieces: Iterator[Piece[S]], num_rows: int) -> Iterator[Piece[S]]:
    """Yield the first `num_rows` rows, and take no piece beyond the one that completes them."""
    while num_rows > 0:
        piece = next(pieces, None)
        if piece is None:
            return
        yield piece.split(min(num_rows, piece.num_rows))[0]
        num_rows -= piece.num_rows


def _without_first(pieces: Iterable[Piece[S]], num_rows: int) -> Iterator[Piece[S]]:
    for piece in pieces:
        num_skipped = min(num_rows, piece.num_rows)
        num_rows -= num_skipped
        if num_skipped < piece.num_rows:
            yield piece.split(num_skipped)[1]


def _load(block: Block) -> pa.Table:
    table = block.load()
    if table.num_rows != block.num_rows:
        raise ValueError(
            f"A block of epoch {block.epoch} must have {block.num_rows} rows, got {table.num_rows}. Make the "
            "transforms of the dataset deterministic, or materialize() it."
        )
    return _without_views(table)


def _all_rows(piece: Piece[_BlockRows]) -> pa.Table:
    return piece.source.select(range(piece.start, piece.stop))


def _take(table: pa.Table, rows: Rows) -> pa.Table:
    return table.take(pa.array(rows))


def _without_views(table: pa.Table) -> pa.Table:
    """Return the table with string_view and binary_view cast, since Arrow cannot take rows of them."""
    if not any(pa.types.is_string_view(type_) or pa.types.is_binary_view(type_) for type_ in table.schema.types):
        return table
    plain = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return table.cast(pa.schema([field.with_type(plain.get(field.type, field.type)) for field in table.schema]))


def _concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenate tables without a copy. Their types may differ, for example if a column of one has only nulls."""
    if len(tables) == 1:
        return tables[0]
    same = all(table.schema.equals(tables[0].schema) for table in tables)
    return pa.concat_tables(tables, promote_options="none" if same else "permissive")
