"""Checkpoints: how long a save blocks a step, and the throughput of publishing and restoring.

Our saves block a step only for the copy out of TensorFlow, then publish to local disk, to an S3 server on this machine,
and to a throttled store. The peer is TensorFlow's CheckpointSaverHook in the same session, which saves to local disk.
Throughput to S3 is compared with s3fs and boto3 in the same rounds, since the server shares the machine's CPUs.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import boto3
import psutil
import s3fs
import tensorflow as tf
import tensorflow.compat.v1 as v1
from _side_by_side import Comparison, arguments, report

from ray_estimator import RunConfig
from ray_estimator._checkpoints.store import CheckpointStore, Retention
from ray_estimator._engine.checkpointing.publisher import Publisher
from ray_estimator._engine.hooks.saving import CheckpointWriter
from ray_estimator._jobs.worker import WorkerStatus
from ray_estimator._storage.storage import Storage

MB = 2**20
SIZES_MB = (10, 200, 1000)
VARIABLES = 10
SLOW_MB_PER_SEC = 50
BUCKET = "bench"
KEYS = {"key": "testing", "secret": "testing"}


class SlowStore(CheckpointStore):
    """A store with a limited upload rate."""

    def publish(self, local_prefix: str, step: int, *args: Any, **kwargs: Any) -> Any:
        size = sum(path.stat().st_size for path in Path(local_prefix).parent.glob("model.ckpt-*"))
        time.sleep(size / (SLOW_MB_PER_SEC * MB))
        return super().publish(local_prefix, step, *args, **kwargs)


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's S3 server on this machine; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if time.monotonic() > deadline:
            raise TimeoutError("The S3 server did not start within 60 s.")
        time.sleep(0.1)


def bucket_client(endpoint: str) -> Any:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEYS["key"],
        aws_secret_access_key=KEYS["secret"],
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    return client


@contextlib.contextmanager
def model_of(size_mb: int) -> Iterator[tuple[v1.Session, v1.train.Scaffold]]:
    """Yield a session with variables of `size_mb`, and a scaffold with their saver."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.create_global_step()
        for number in range(VARIABLES):
            shape = [size_mb * MB // 4 // VARIABLES]
            v1.get_variable(f"weights_{number}", shape, initializer=v1.random_uniform_initializer())
        scaffold = v1.train.Scaffold(saver=v1.train.Saver(sharded=True, max_to_keep=2))
        session.run(v1.global_variables_initializer())
        yield session, scaffold


@dataclass
class Peak:
    """Peak increase of the process's memory, in bytes."""

    above: int = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        process, done = psutil.Process(), threading.Event()
        before = process.memory_info().rss

        def watch() -> None:
            while not done.wait(0.02):
                self.above = max(self.above, process.memory_info().rss - before)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def seconds(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def blocked_by_ours(
    session: v1.Session, scaffold: v1.train.Scaffold, store: CheckpointStore, rounds: int, *, overlapping: bool
) -> tuple[list[float], Peak]:
    """Seconds that each save blocks a step; `overlapping`: while the previous one is still being published."""
    peak, blocked = Peak(), []
    with Publisher(store, None) as publisher, peak.watched():
        writer = CheckpointWriter(publisher, RunConfig(keep_checkpoint_max=1), scaffold)
        writer.prepare(scaffold.saver.saver_def)
        for step in range(1 + rounds):
            blocked.append(seconds(functools.partial(writer.save, session, step)))
            if not overlapping:
                writer.wait(WorkerStatus())
        writer.wait(WorkerStatus())
    return blocked[1:], peak


def blocked_by_peer(session: v1.Session, scaffold: v1.train.Scaffold, folder: str, rounds: int) -> list[float]:
    """Seconds that each save of TensorFlow's own hook blocks a step."""
    hook = v1.train.CheckpointSaverHook(folder, save_steps=1, scaffold=scaffold)
    hook.begin()

    def save() -> None:
        # As in `after_run` of a step with a save.
        hook._save(session, next(steps))

    steps = iter(range(1 + rounds))
    return [seconds(save) for _ in range(1 + rounds)][1:]


def compare_saves(size_mb: int, endpoint: str, rounds: int) -> list[Comparison]:
    s3 = Storage({**KEYS, "endpoint_url": endpoint})
    results = []
    with model_of(size_mb) as (session, scaffold), tempfile.TemporaryDirectory() as folder:
        peer = blocked_by_peer(session, scaffold, os.path.join(folder, "peer"), rounds)
        for name, store, overlapping in (
            ("disk", CheckpointStore(os.path.join(folder, "ours"), Storage()), False),
            ("S3", CheckpointStore(f"s3://{BUCKET}/{size_mb}", s3), False),
            ("a slow store", SlowStore(os.path.join(folder, "slow"), Storage()), True),
        ):
            ours, peak = blocked_by_ours(session, scaffold, store, rounds, overlapping=overlapping)
            what = f"{size_mb:,} MB to {name}: time that a save blocks a step, against CheckpointSaverHook to disk"
            print(f"{what}: peak memory increase {peak.above / MB:,.0f} MB", flush=True)
            results.append(Comparison(what, [1e3 * s for s in ours], [1e3 * s for s in peer], unit="ms", goal=1.2))
    return results


def compare_throughput(size_mb: int, endpoint: str, client: Any, rounds: int) -> list[Comparison]:
    """MB/s to the S3 server and back: ours, with manifest and checksums, against the faster of s3fs and boto3."""
    storage = Storage({**KEYS, "endpoint_url": endpoint})
    store = CheckpointStore(f"s3://{BUCKET}/throughput-{size_mb}", storage)
    filesystem = s3fs.S3FileSystem(**KEYS, endpoint_url=endpoint)
    key = f"peer/data-{size_mb}"
    up, down = Rates(size_mb), Rates(size_mb)
    with model_of(size_mb) as (session, scaffold), tempfile.TemporaryDirectory() as folder:
        for step in range(rounds + 1):  # the first round warms up
            prefix = scaffold.saver.save(session, os.path.join(folder, "model.ckpt"), step, write_meta_graph=False)
            (data,) = (str(path) for path in Path(folder).glob(f"model.ckpt-{step}.data*"))
            back = os.path.join(folder, "back")
            os.makedirs(back)
            uploads = {
                "s3fs": functools.partial(filesystem.put_file, data, f"{BUCKET}/{key}"),
                "boto3": functools.partial(client.upload_file, data, BUCKET, key),
                "ours": functools.partial(store.publish, prefix, step, Retention(newest=1)),
            }
            up.measure(uploads, step)
            newest = store.latest()
            assert newest is not None
            downloads = {
                "s3fs": functools.partial(filesystem.get_file, f"{BUCKET}/{key}", os.path.join(back, "s3fs")),
                "boto3": functools.partial(client.download_file, BUCKET, key, os.path.join(back, "boto3")),
                "ours": functools.partial(store.fetch, newest, back),
            }
            down.measure(downloads, step)
            shutil.rmtree(back)
    return [
        up.comparison(f"{size_mb:,} MB, publish to S3, against the faster of s3fs and boto3"),
        down.comparison(f"{size_mb:,} MB, restore from S3, against the faster of s3fs and boto3"),
    ]


class Rates:
    """MB/s of each program in each round after the first."""

    def __init__(self, size_mb: int) -> None:
        self._size_mb = size_mb
        self._rates: dict[str, list[float]] = {"ours": [], "s3fs": [], "boto3": []}

    def measure(self, programs: dict[str, Callable[[], Any]], number: int) -> None:
        """One round. Each program is first, second and last equally often."""
        names = list(programs)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            rate = self._size_mb / seconds(programs[name])
            if number > 0:
                self._rates[name].append(rate)

    def comparison(self, what: str) -> Comparison:
        medians = {name: statistics.median(rates) for name, rates in self._rates.items()}
        print(f"{what}: " + ", ".join(f"{name} {rate:,.0f} MB/s" for name, rate in medians.items()), flush=True)
        faster = max(("s3fs", "boto3"), key=medians.__getitem__)
        return Comparison(what, self._rates["ours"], self._rates[faster], unit="MB/s", goal=0.9, at_least=True)


def main() -> int:
    options = arguments(__doc__, rounds=7)
    logging.getLogger("ray_estimator").setLevel(logging.ERROR)  # superseded saves are expected
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    comparisons = []
    with s3_server() as endpoint:
        client = bucket_client(endpoint)
        for size_mb in SIZES_MB:
            comparisons += compare_saves(size_mb, endpoint, options.rounds)
            comparisons += compare_throughput(size_mb, endpoint, client, options.rounds)
    return report(comparisons, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
