"""The monitor of a training run, without Ray running."""

from __future__ import annotations

import asyncio

from ray_estimator._runtime.train.monitor import RunMonitor


def test_exchanged_values_are_in_rank_order_and_dropped_after_all_ranks_have_them() -> None:
    async def exchange_all() -> list[list[list[str]]]:
        monitor = RunMonitor(2)
        await monitor.begin()
        ranks = [
            asyncio.gather(*(monitor.exchange("attempt", topic, rank, f"{topic} of {rank}") for topic in ("a", "b")))
            for rank in (1, 0)
        ]
        received = [list(answers) for answers in await asyncio.gather(*ranks)]
        assert not monitor._exchanges
        return received

    assert asyncio.run(exchange_all()) == [[["a of 0", "a of 1"], ["b of 0", "b of 1"]]] * 2
