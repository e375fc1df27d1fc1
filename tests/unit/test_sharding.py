from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_estimator._data.sharding import Block, Sharding, Shuffle, aligned_ranges, rank_tables

Epochs = list[list[int]]
"""For each epoch, the number of rows of each of its blocks."""

on_a_busy_machine = settings(deadline=None)
block_sizes = st.lists(st.one_of(st.integers(0, 12), st.integers(0, 150)), max_size=8)
epochs_of_blocks = st.lists(block_sizes, min_size=1, max_size=3)
maybe_shuffle = st.none() | st.builds(Shuffle, seed=st.integers(-(2**70), 2**70), buffer_rows=st.integers(1, 200))


def make_blocks(epochs: Epochs) -> list[Block]:
    """Blocks whose column `row` numbers the rows of the whole stream."""
    blocks, first = [], 0
    for epoch, sizes in enumerate(epochs):
        for size in sizes:
            table = pa.table({"row": np.arange(first, first + size), "epoch": np.full(size, epoch)})
            blocks.append(Block(epoch, size, lambda table=table: table))
            first += size
    return blocks


def make_batches(
    epochs: Epochs, sharding: Sharding, shuffle: Shuffle | None = None, skip_rows: int = 0
) -> list[list[int]]:
    """The batches of one rank."""
    batches = []
    for table in rank_tables(make_blocks(epochs), sharding, shuffle, skip_rows=skip_rows):
        rows = table["row"].to_pylist()
        batches += [rows[i : i + sharding.batch_size] for i in range(0, len(rows), sharding.batch_size)]
    return batches


def make_global_batches(
    epochs: Epochs,
    num_ranks: int,
    batch_size: int,
    shuffle: Shuffle | None = None,
    drop_remainder: bool = False,
    skip_rows: int = 0,
) -> list[list[int]]:
    """The global batches of all ranks together."""
    ranks = [
        make_batches(epochs, Sharding(rank, num_ranks, batch_size, drop_remainder, chunk_bytes=500), shuffle, skip_rows)
        for rank in range(num_ranks)
    ]
    return [all_rows(shares) for shares in zip(*ranks, strict=True)]  # strict: all have the same number of batches


def all_rows(batches: Sequence[Sequence[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def num_rows_of(epochs: Epochs) -> int:
    return sum(map(sum, epochs))


@on_a_busy_machine
@given(epochs_of_blocks, st.integers(1, 4), st.integers(1, 10), maybe_shuffle)
def test_each_row_of_each_epoch_is_read_once_and_before_the_next_epoch(
    epochs: Epochs, num_ranks: int, batch_size: int, shuffle: Shuffle | None
) -> None:
    rows = all_rows(make_global_batches(epochs, num_ranks, batch_size, shuffle))

    num_left = num_rows_of(epochs) % (num_ranks * batch_size)
    num_lost = num_left if num_left < num_ranks else 0
    assert len(set(rows)) == len(rows) == num_rows_of(epochs) - num_lost
    ends = np.cumsum([sum(sizes) for sizes in epochs])
    epoch_of_rows = np.searchsorted(ends, rows, side="right")
    assert (np.diff(epoch_of_rows) >= 0).all()
    if shuffle is None:
        assert rows == list(range(len(rows)))


@on_a_busy_machine
@given(epochs_of_blocks, st.integers(1, 3), maybe_shuffle, st.booleans())
def test_global_batches_do_not_depend_on_the_number_of_ranks(
    epochs: Epochs, twelfth: int, shuffle: Shuffle | None, drop_remainder: bool
) -> None:
    global_batch_size = 12 * twelfth
    alone = make_global_batches(epochs, 1, global_batch_size, shuffle, drop_remainder)
    for num_ranks in (2, 3, 4):
        together = make_global_batches(epochs, num_ranks, global_batch_size // num_ranks, shuffle, drop_remainder)
        too_few_for_all = bool(alone) and len(alone[-1]) < num_ranks
        assert together == (alone[:-1] if too_few_for_all else alone)


@on_a_busy_machine
@given(epochs_of_blocks, st.integers(1, 4), st.integers(1, 10), maybe_shuffle, st.booleans())
def test_batches_are_full_except_for_a_last_one_that_is_split_evenly(
    epochs: Epochs, num_ranks: int, batch_size: int, shuffle: Shuffle | None, drop_remainder: bool
) -> None:
    ranks = [
        make_batches(epochs, Sharding(rank, num_ranks, batch_size, drop_remainder), shuffle)
        for rank in range(num_ranks)
    ]

    num_whole, num_left = divmod(num_rows_of(epochs), num_ranks * batch_size)
    for batches in ranks:
        assert [len(batch) for batch in batches[:num_whole]] == [batch_size] * num_whole
    shares = [sum(map(len, batches[num_whole:])) for batches in ranks]
    if drop_remainder or num_left < num_ranks:
        assert shares == [0] * num_ranks
    else:
        assert sum(shares) == num_left
        assert sorted(shares, reverse=True) == shares
        assert shares[0] - shares[-1] <= 1


@on_a_busy_machine
@given(epochs_of_blocks, st.integers(1, 3), st.integers(1, 6), maybe_shuffle, st.data())
def test_a_run_that_skips_consumed_rows_resumes_at_the_next_batch(
    epochs: Epochs, num_ranks: int, batch_size: int, shuffle: Shuffle | None, data: st.DataObject
) -> None:
    batches = make_global_batches(epochs, num_ranks, batch_size, shuffle)
    step = data.draw(st.integers(0, len(batches)))

    skip_rows = len(all_rows(batches[:step]))
    assert make_global_batches(epochs, num_ranks, batch_size, shuffle, skip_rows=skip_rows) == batches[step:]


@on_a_busy_machine
@given(epochs_of_blocks, st.integers(1, 4), st.integers(1, 10), maybe_shuffle, st.integers(1, 3000))
def test_tables_hold_whole_batches_and_no_more_bytes_than_a_chunk(
    epochs: Epochs, num_ranks: int, batch_size: int, shuffle: Shuffle | None, chunk_bytes: int
) -> None:
    sharding = Sharding(0, num_ranks, batch_size, chunk_bytes=chunk_bytes)
    tables = list(rank_tables(make_blocks(epochs), sharding, shuffle))

    assert all(table.num_rows % batch_size == 0 for table in tables[:-1])
    assert all(table.num_rows for table in tables)
    assert all(table.nbytes <= chunk_bytes or table.num_rows <= batch_size for table in tables)


@on_a_busy_machine
@given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 4), st.integers(1, 10), maybe_shuffle)
def test_a_rank_loads_a_block_once_and_only_if_it_owns_rows_of_it(
    sizes: list[int], num_ranks: int, batch_size: int, shuffle: Shuffle | None
) -> None:
    loads: list[int] = []

    def recorded(index: int, block: Block) -> Block:
        def load() -> pa.Table:
            loads.append(index)
            return block.load()

        return Block(block.epoch, block.num_rows, load)

    blocks = [recorded(index, block) for index, block in enumerate(make_blocks([sizes]))]
    tables = list(rank_tables(blocks, Sharding(num_ranks - 1, num_ranks, batch_size), shuffle))

    rows = [row for table in tables for row in table["row"].to_pylist()]
    owners = np.searchsorted(np.cumsum(sizes), rows, side="right").tolist() if sizes else []
    assert sorted(loads) == sorted(set(owners))


def test_a_rank_that_skips_rows_does_not_load_their_blocks() -> None:
    def fail() -> pa.Table:
        raise AssertionError("This block holds skipped rows only.")

    blocks = make_blocks([[10] * 6])
    blocks[:3] = [Block(0, 10, fail)] * 3
    for shuffle in (None, Shuffle(seed=1, buffer_rows=15)):
        tables = list(rank_tables(blocks, Sharding(0, 1, 5), shuffle, skip_rows=30))
        assert sum(table.num_rows for table in tables) == 30


def test_epochs_differ_in_order_and_a_seed_determines_it() -> None:
    def epoch_orders(seed: int) -> list[list[int]]:
        rows = all_rows(make_batches([[60, 40]] * 3, Sharding(0, 1, 10), Shuffle(seed, buffer_rows=50)))
        return [[row % 100 for row in rows[start : start + 100]] for start in (0, 100, 200)]

    orders = epoch_orders(seed=7)
    assert orders == epoch_orders(seed=7)
    assert all(one != other for one, other in [*pairwise(orders), (orders[0], orders[2])])
    assert orders[0] != epoch_orders(seed=8)[0]


def test_shuffled_rows_stay_within_their_window() -> None:
    rows = all_rows(make_batches([[7, 13, 5]], Sharding(0, 1, 5), Shuffle(seed=3, buffer_rows=10)))
    assert [sorted(rows[:10]), sorted(rows[10:20]), sorted(rows[20:])] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 25)),
    ]
    assert rows != sorted(rows)


def test_windows_of_one_epoch_have_different_orders() -> None:
    rows = all_rows(make_batches([[100]], Sharding(0, 1, 10), Shuffle(seed=3, buffer_rows=50)))
    assert [row + 50 for row in rows[:50]] != rows[50:]


@pytest.mark.parametrize("shuffle", [None, Shuffle(seed=1, buffer_rows=5)])
def test_a_table_comes_as_soon_as_the_blocks_taken_complete_a_global_batch(shuffle: Shuffle | None) -> None:
    num_taken = 0

    def counted() -> Iterator[Block]:
        nonlocal num_taken
        for block in make_blocks([[5] * 8]):
            num_taken += 1
            yield block

    tables = rank_tables(counted(), Sharding(0, 2, 5), shuffle)
    assert [(next(tables).num_rows, num_taken) for _ in range(4)] == [(5, 2), (5, 4), (5, 6), (5, 8)]


def test_an_endless_stream_is_read_lazily() -> None:
    def endless() -> Iterator[Block]:
        epoch = 0
        while True:
            yield Block(epoch, 3, lambda epoch=epoch: pa.table({"epoch": [epoch] * 3}))
            epoch += 1

    tables = rank_tables(endless(), Sharding(0, 1, 4))
    assert [next(tables)["epoch"].to_pylist() for _ in range(3)] == [[0, 0, 0, 1], [1, 1, 2, 2], [2, 3, 3, 3]]


def test_one_rank_without_shuffle_gets_slices_that_share_the_memory_of_long_blocks() -> None:
    sources = [pa.table({"x": np.arange(1000.0)}) for _ in range(3)]
    blocks = [Block(0, 1000, lambda table=table: table) for table in sources]
    tables = list(rank_tables(blocks, Sharding(0, 1, 64)))

    addresses = [table["x"].chunk(0).buffers()[1].address for table in sources]
    shared = [t for t in tables if t["x"].num_chunks == 1 and t["x"].chunk(0).buffers()[1].address in addresses]
    assert sum(table.num_rows for table in shared) >= 3000 - 3 * 64
    assert len(tables) <= 6


def test_a_remainder_with_fewer_rows_than_ranks_is_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ray_estimator"):
        ranks = [make_batches([[10, 8]], Sharding(rank, 4, 4)) for rank in range(4)]
    assert [len(batches) for batches in ranks] == [1, 1, 1, 1]
    assert [record.message for record in caplog.records] == [
        "Dropping the last 2 row(s) of the input: too few for one per worker (4 workers)."
    ]


@pytest.mark.parametrize("shuffle", [None, Shuffle(seed=5, buffer_rows=7)])
def test_rows_of_every_kind_of_column_stay_intact(shuffle: Shuffle | None) -> None:
    numbers = list(range(30))
    table = pa.table(
        {
            "row": numbers,
            "text": pa.array([str(n) for n in numbers]).cast(pa.string_view()),
            "bytes": pa.array([b"%d" % n for n in numbers], pa.binary_view()),
            "list": [[n] * (n % 3) for n in numbers],
            "pair": pa.array([[n, -n] for n in numbers], pa.list_(pa.int64(), 2)),
            "kind": pa.array([str(n % 4) for n in numbers]).dictionary_encode(),
            "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(120.0).reshape(30, 2, 2)),
        }
    )
    blocks = [Block(0, 10, lambda start=start: table.slice(start, 10)) for start in (0, 10, 20)]
    for rank in range(2):
        shares = list(rank_tables(blocks, Sharding(rank, 2, 3), shuffle))
        assert sum(share.num_rows for share in shares) == 15
        for row in (row for share in shares for row in share.to_pylist()):
            n = row["row"]
            assert (row["text"], row["bytes"], row["kind"]) == (str(n), b"%d" % n, str(n % 4))
            assert (row["list"], row["pair"]) == ([n] * (n % 3), [n, -n])
            assert np.asarray(row["tensor"]).ravel().tolist() == [4 * n, 4 * n + 1, 4 * n + 2, 4 * n + 3]


def test_blocks_of_nulls_and_of_values_are_concatenated() -> None:
    tables = [pa.table({"x": pa.nulls(2)}), pa.table({"x": [1.5, 2.5]})]
    (joined,) = rank_tables([Block(0, 2, lambda t=t: t) for t in tables], Sharding(0, 1, 4))
    assert joined["x"].to_pylist() == [None, None, 1.5, 2.5]


def test_a_block_that_loads_another_number_of_rows_is_an_error() -> None:
    blocks = [Block(2, 3, lambda: pa.table({"x": [1, 2]}))]
    with pytest.raises(ValueError, match="epoch 2 must have 3 rows, got 2"):
        list(rank_tables(blocks, Sharding(0, 1, 1)))


def test_epochs_out_of_order_are_an_error() -> None:
    blocks = [Block(epoch, 1, lambda: pa.table({"x": [1]})) for epoch in (0, 1, 0)]
    with pytest.raises(ValueError, match="got epoch 0 after 1"):
        list(rank_tables(blocks, Sharding(0, 1, 1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 2, "num_ranks": 2, "batch_size": 1}, r"rank must be in \[0, 2\), got 2"),
        ({"rank": 0, "num_ranks": 0, "batch_size": 1}, "num_ranks should be > 0, got 0"),
        ({"rank": 0, "num_ranks": 1, "batch_size": 0}, "batch_size should be > 0, got 0"),
        ({"rank": 0, "num_ranks": 1, "batch_size": 1, "chunk_bytes": 0}, "chunk_bytes should be > 0, got 0"),
    ],
)
def test_a_sharding_out_of_range_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sharding(**arguments)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer_rows should be > 0, got 0"):
        Shuffle(seed=0, buffer_rows=0)


@on_a_busy_machine
@given(
    block_sizes,
    st.integers(1, 10),
    st.lists(st.integers(1, 60), min_size=1, max_size=3),
    st.none() | st.integers(0, 300),
)
def test_aligned_ranges_cover_the_rows_in_order_with_whole_batches(
    sizes: list[int], batch_size: int, target_rows: list[int], max_rows: int | None
) -> None:
    ranges = list(aligned_ranges(sizes, batch_size, itertools.cycle(target_rows), max_rows))

    rows = [(index, row) for index, size in enumerate(sizes) for row in range(size)][:max_rows]
    assert [(index, row) for pieces in ranges for index, start, stop in pieces for row in range(start, stop)] == rows
    assert all(start < stop for pieces in ranges for _, start, stop in pieces)
    lengths = [sum(stop - start for _, start, stop in pieces) for pieces in ranges]
    whole = [
        -(-rows // batch_size) * batch_size for _, rows in zip(lengths, itertools.cycle(target_rows), strict=False)
    ]
    assert lengths[:-1] == whole[:-1]
    assert all(0 < length <= most for length, most in zip(lengths[-1:], whole[-1:], strict=True))


def test_aligned_ranges_take_no_more_lengths_than_they_need() -> None:
    lengths = iter([4, 4, 4, 4, 4, 4, 4, 4])
    ranges = aligned_ranges(lengths, batch_size=3, target_rows=itertools.repeat(5), max_rows=12)
    assert next(ranges) == [(0, 0, 4), (1, 0, 2)]
    assert len(list(lengths)) == 6  # two are taken

    lengths = iter([4, 4, 4, 4])
    assert list(aligned_ranges(lengths, batch_size=4, target_rows=itertools.repeat(4), max_rows=8)) == [
        [(0, 0, 4)],
        [(1, 0, 4)],
    ]
    assert list(lengths) == [4, 4]


def test_aligned_ranges_refuse_a_batch_size_out_of_range_at_once() -> None:
    with pytest.raises(ValueError, match="batch_size should be > 0, got 0"):
        aligned_ranges([1], batch_size=0, target_rows=[1])
