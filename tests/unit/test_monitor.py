"""The meeting point of a training run, without Ray running."""

from __future__ import annotations

import asyncio

from ray_estimator._runtime.train.monitor import RunMonitor


def test_ranks_exchange_values_in_their_order_and_what_all_have_taken_is_forgotten() -> None:
    async def meet() -> list[list[list[str]]]:
        monitor = RunMonitor(2)
        await monitor.begin()
        ranks = [
            asyncio.gather(*(monitor.exchange("attempt", topic, rank, f"{topic} of {rank}") for topic in ("a", "b")))
            for rank in (1, 0)
        ]
        given = [list(answers) for answers in await asyncio.gather(*ranks)]
        assert not monitor._exchanges
        return given

    assert asyncio.run(meet()) == [[["a of 0", "a of 1"], ["b of 0", "b of 1"]]] * 2
