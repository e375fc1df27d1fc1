"""Starts tasks and leaves them while they end, hundreds of times. Where that is not safe, this process dies."""

from __future__ import annotations

import contextlib
import os
import random

os.environ["RAY_AUTH_MODE"] = "disabled"

import numpy as np
import ray

from ray_estimator import RunConfig
from ray_estimator._runtime.tasks.task import Tasks


def few(number):
    for _ in range(number):
        yield np.ones(200_000)
    if number == 2:
        raise ValueError("at its end")


def tasks_left() -> None:
    """Three tasks at a time, of up to three results, each left behind its first result or its end."""
    tasks = Tasks(RunConfig())
    for _ in range(200):
        running = [tasks.start("The task", few, random.choice([1, 1, 2, 3])) for _ in range(3)]
        for task in running:
            next(task)
        if random.random() < 0.5:
            with contextlib.suppress(ValueError):
                assert len(list(running[0])) < 3
            running[0].cancel()
        for task in running:
            task.abandon()


if __name__ == "__main__":
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    tasks_left()
    ray.shutdown()
    print("done")
