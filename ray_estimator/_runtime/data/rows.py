"""The rows of a Ray Dataset, in order, as blocks that are fetched where they are used.

Ray Data reads, transforms, streams and spills. Only references and row counts pass through the process that executes
it; ranks and tasks fetch the rows from the object store.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import ray
from ray.data import Dataset
from ray.data.block import BlockAccessor
from ray.data.dataset import MaterializedDataset

from ray_estimator._data.position import InputPosition, InputSource
from ray_estimator._data.sharding import Block, Sharding, Shuffle, rank_tables
from ray_estimator._runtime.data.streaming import bundles_in_order
from ray_estimator.errors import InputTimeoutError

if TYPE_CHECKING:
    import pyarrow as pa


_ANSWER_SECS = 30.0
"""How much longer than for a block a rank waits for the actor that waits for the block."""


class BlockRef(NamedTuple):
    """Rows [start, stop) of a block in Ray's object store, in an epoch. `row_bytes` is 0 if unknown."""

    epoch: int
    ref: Any
    start: int
    stop: int
    row_bytes: float = 0.0

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return self.stop - self.start

    def load(self, columns: Sequence[str], timeout_secs: float | None) -> pa.Table:
        """Fetch the rows; without a copy if this node's object store has the block as Arrow."""
        table = BlockAccessor.for_block(_get(self.ref, timeout_secs, "A block of the dataset")).to_arrow()
        return table.select(list(columns)).slice(self.start, self.num_rows)


@dataclass(frozen=True)
class RowSource:
    """What to read, how often, and in which order. Serialized for the process that executes Ray Data.

    Attributes:
        dataset: The Ray Dataset.
        columns: The columns to read.
        batch_size: Rows in a batch; in training, per replica.
        num_epochs: Passes over the dataset. None: endless.
        shuffle: How rows are permuted. None: keep the dataset's order.
        drop_remainder: Whether to drop a last global batch that is not full.
        timeout_secs: How long to wait for the next block. None: no limit.
        source: Identifies the input of a training run, with the seed if the user set one.
    """

    dataset: Dataset
    columns: tuple[str, ...]
    batch_size: int
    num_epochs: int | None
    shuffle: Shuffle | None = None
    drop_remainder: bool = False
    timeout_secs: float | None = None
    source: InputSource | None = None

    def with_seed(self, seed: int | None) -> RowSource:
        """Return the same rows, shuffled with `seed`, which becomes a fixed seed. None: fix the current seed."""
        if self.shuffle is None or self.source is None:
            return self
        seed = self.shuffle.seed if seed is None else seed
        return replace(self, shuffle=replace(self.shuffle, seed=seed), source=replace(self.source, seed=seed))

    def block_refs(self, first_epoch: int = 0) -> Iterator[BlockRef]:
        """Yield every block of every epoch, in the order of use. Executes Ray Data in this process."""
        epochs = itertools.count(first_epoch) if self.num_epochs is None else range(first_epoch, self.num_epochs)
        for epoch in epochs:
            is_empty = True
            for block in self._one_pass(epoch):
                is_empty = False
                yield block
            if is_empty:
                return

    def _one_pass(self, epoch: int) -> Iterator[BlockRef]:
        dataset = projected(self.dataset, self.columns)
        if self.shuffle is None:
            yield from self._in_order(dataset, epoch)
            return
        # The order of blocks; Shuffle derives another sequence for the rows of a window.
        seed = np.random.SeedSequence([self.shuffle.seed & (2**64 - 1), epoch, 2**32 - 1])
        if isinstance(dataset, MaterializedDataset):
            blocks = list(self._in_order(dataset, epoch))
            yield from (blocks[index] for index in np.random.default_rng(seed).permutation(len(blocks)))
        else:
            block_seed = int(seed.generate_state(1)[0])
            yield from self._in_order(dataset.randomize_block_order(seed=block_seed), epoch)

    def _in_order(self, dataset: Dataset, epoch: int) -> Iterator[BlockRef]:
        for bundle in bundles_in_order(dataset, self.timeout_secs):
            for entry, part in zip(bundle.blocks, bundle.slices, strict=True):
                start, stop = (0, entry.metadata.num_rows) if part is None else (part.start_offset, part.end_offset)
                if stop > start:
                    row_bytes = (entry.metadata.size_bytes or 0) / entry.metadata.num_rows
                    yield BlockRef(epoch, entry.ref, start, stop, row_bytes)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows of a single rank, in tables of whole batches. Executes Ray Data in this process."""
        return self.tables_of(0, 1, self.block_refs())

    def tables_of(
        self, rank: int, num_ranks: int, refs: Iterator[BlockRef], *, skip_rows: int = 0
    ) -> Iterator[pa.Table]:
        """Yield the rows of one of several ranks, from the blocks of all ranks, after the first `skip_rows` rows."""
        load = functools.partial(BlockRef.load, columns=self.columns, timeout_secs=self.timeout_secs)
        blocks = (Block(ref.epoch, ref.num_rows, functools.partial(load, ref)) for ref in refs)
        sharding = Sharding(rank, num_ranks, self.batch_size, self.drop_remainder)
        return rank_tables(blocks, sharding, self.shuffle, skip_rows=skip_rows)


class RankRows:
    """The rows of one rank of a training run, starting at any position.

    Attributes:
        rows_per_epoch: Rows in an epoch, of all ranks together. None: no epoch has ended yet.

    Args:
        source: The rows to read.
        rank: This rank.
        num_ranks: Number of ranks that share a global batch.
        block_refs: Returns the blocks of all ranks, starting at an epoch.
    """

    def __init__(
        self, source: RowSource, rank: int, num_ranks: int, block_refs: Callable[[int], Iterator[BlockRef]]
    ) -> None:
        self.rows_per_epoch: int | None = None
        self._source = source
        self._rank = rank
        self._num_ranks = num_ranks
        self._block_refs = block_refs

    def tables_from(self, position: InputPosition) -> Callable[[], Iterator[pa.Table]]:
        """Return a function that reads the rows after `position`. Completed epochs are not read again."""
        self.rows_per_epoch = position.rows_per_epoch
        epoch, rows = divmod(position.rows, position.rows_per_epoch) if position.rows_per_epoch else (0, position.rows)

        def tables() -> Iterator[pa.Table]:
            refs = self._counted(self._block_refs(epoch), epoch)
            return self._source.tables_of(self._rank, self._num_ranks, refs, skip_rows=rows)

        return tables

    def _counted(self, refs: Iterator[BlockRef], first_epoch: int) -> Iterator[BlockRef]:
        num_rows = 0
        for ref in refs:
            if ref.epoch == first_epoch:
                num_rows += ref.num_rows
            elif self.rows_per_epoch is None:
                self.rows_per_epoch = num_rows
            yield ref


def projected(dataset: Dataset, columns: tuple[str, ...]) -> Dataset:
    """Return the dataset with only `columns`, unless it is in memory or has no others."""
    if isinstance(dataset, MaterializedDataset) or set(columns) == set(dataset.columns() or ()):
        return dataset
    return dataset.select_columns(list(columns))


@dataclass(frozen=True)
class RangeOfRows:
    """Consecutive rows in whole batches, except at the end. Serialized for the task that reads them.

    Attributes:
        pieces: The pieces of blocks that have the rows.
        columns: The columns to read.
        batch_size: Rows in a batch.
        timeout_secs: How long to wait for a block. None: no limit.
    """

    pieces: tuple[BlockRef, ...]
    columns: tuple[str, ...]
    batch_size: int
    timeout_secs: float | None = None

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return sum(piece.num_rows for piece in self.pieces)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows in tables of whole batches."""
        load = functools.partial(BlockRef.load, columns=self.columns, timeout_secs=self.timeout_secs)
        blocks = (Block(0, piece.num_rows, functools.partial(load, piece)) for piece in self.pieces)
        return rank_tables(blocks, Sharding(0, 1, self.batch_size))


class BlockFeed:
    """Serves every rank of a group the same sequence of blocks. Runs as an actor, and fetches no rows.

    A restarted group passes a new `attempt` name, which restarts the sequence.
    """

    def __init__(self, source: RowSource, num_ranks: int) -> None:
        self._source = source
        self._num_ranks = num_ranks
        self._attempt: str | None = None
        self._blocks: Iterator[BlockRef] = iter(())
        self._error: Exception | None = None

    def next(self, attempt: str, first_epoch: int, rank: int, index: int) -> BlockRef | None:
        """Return block `index` of the sequence that starts at `first_epoch`, or None after its end.

        Each rank requests 0, 1, 2, ..., and all ranks the same epoch.
        """
        if attempt != self._attempt:
            self._restart(attempt, first_epoch)
        while index >= self._first + len(self._kept):
            self._kept.append(self._pull())
        self._positions[rank] = index
        block = self._kept[index - self._first]
        while self._first < min(self._positions):
            self._kept.popleft()
            self._first += 1
        return block

    def _pull(self) -> BlockRef | None:
        if self._error is None:
            try:
                return next(self._blocks, None)
            except Exception as error:  # Raise it for every rank: after an error, the iterator seems to be exhausted.
                self._error = error
        raise self._error

    def _restart(self, attempt: str, first_epoch: int) -> None:
        self._attempt = attempt
        self._error = None
        self._blocks = self._source.block_refs(first_epoch)
        self._kept: deque[BlockRef | None] = deque()
        self._first = 0
        self._positions = [0] * self._num_ranks


def blocks_from(feed: Any, attempt: str, rank: int, timeout_secs: float | None, first_epoch: int) -> Iterator[BlockRef]:
    """Yield the blocks of a `BlockFeed` from an epoch, and request one block ahead. Runs on a worker.

    Raises:
        InputTimeoutError: No block arrived within `timeout_secs`.
    """
    request = functools.partial(feed.next.remote, attempt, first_epoch, rank)
    answer_secs = None if timeout_secs is None else timeout_secs + _ANSWER_SECS
    pending = request(0)
    for index in itertools.count(1):
        block = _get(pending, answer_secs, "The actor that serves the blocks")
        if block is None:
            return
        pending = request(index)
        yield block


def _get(ref: Any, timeout_secs: float | None, what: str) -> Any:
    try:
        return ray.get(ref, timeout=timeout_secs)
    except ray.exceptions.GetTimeoutError:
        raise InputTimeoutError(what, timeout_secs or 0.0) from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputTimeoutError):
            raise error.cause from None
        raise
