"""Checkpoints: how long a save holds up a step, and how fast checkpoints travel to a store and back.

A save of ours is the copy out of TensorFlow; the peer is TensorFlow's CheckpointSaverHook, in the same session, which
saves to local disk. Ours publishes to local disk, to an S3 server on this machine, and to a store that is slowed down.
Throughput is reported beside s3fs and boto3: a server on the same machine sets the pace.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import socket
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
    """A store to which bytes take their time."""

    def publish(self, local_prefix: str, step: int, *args: Any, **kwargs: Any) -> Any:
        size = sum(path.stat().st_size for path in Path(local_prefix).parent.glob("model.ckpt-*"))
        time.sleep(size / (SLOW_MB_PER_SEC * MB))
        return super().publish(local_prefix, step, *args, **kwargs)


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A real S3 server on this machine; gives its URL."""
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
    """A session with variables of `size_mb`, and the scaffold whose saver saves them."""
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
    """How far the process's memory rises above where it was, in bytes."""

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
    """Seconds that each save holds up a step; `overlapping` saves while the one before is still on its way."""
    peak, held_up = Peak(), []
    with Publisher(store, None) as publisher, peak.watched():
        writer = CheckpointWriter(publisher, RunConfig(keep_checkpoint_max=1), scaffold)
        writer.prepare(scaffold.saver.saver_def)
        for step in range(1 + rounds):
            held_up.append(seconds(functools.partial(writer.save, session, step)))
            if not overlapping:
                writer.wait(WorkerStatus())
        writer.wait(WorkerStatus())
    return held_up[1:], peak


def blocked_by_peer(session: v1.Session, scaffold: v1.train.Scaffold, folder: str, rounds: int) -> list[float]:
    """Seconds that TensorFlow's own hook holds up a step for each save."""
    hook = v1.train.CheckpointSaverHook(folder, save_steps=1, scaffold=scaffold)
    hook.begin()

    def save() -> None:
        # As `after_run` of a step at which a save is due.
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
            what = f"{size_mb:,} MB to {name}: time that a save holds up a step, against CheckpointSaverHook to disk"
            print(f"{what}: memory rose by at most {peak.above / MB:,.0f} MB", flush=True)
            results.append(Comparison(what, [1e3 * s for s in ours], [1e3 * s for s in peer], unit="ms", goal=1.2))
    return results


def report_throughput(size_mb: int, endpoint: str, client: Any) -> None:
    """Prints MB/s to the S3 server and back: ours (manifest, checksums and all), s3fs, boto3."""
    storage = Storage({**KEYS, "endpoint_url": endpoint})
    store = CheckpointStore(f"s3://{BUCKET}/throughput-{size_mb}", storage)
    filesystem = s3fs.S3FileSystem(**KEYS, endpoint_url=endpoint)
    with model_of(size_mb) as (session, scaffold), tempfile.TemporaryDirectory() as folder:
        prefix = scaffold.saver.save(session, os.path.join(folder, "model.ckpt"), 1, write_meta_graph=False)
        (data,) = (str(path) for path in Path(folder).glob("model.ckpt-1.data*"))
        object_url = f"{BUCKET}/peer/data-{size_mb}"
        key = object_url.removeprefix(f"{BUCKET}/")
        up = {
            "s3fs": lambda: filesystem.put_file(data, object_url),
            "boto3": lambda: client.upload_file(data, BUCKET, key),
            "ours": lambda: store.publish(prefix, 1, Retention()),
        }
        rates_up = {name: size_mb / seconds(act) for name, act in up.items()}
        back = os.path.join(folder, "back")
        os.makedirs(back)
        newest = store.latest()
        assert newest is not None
        down = {
            "ours": lambda: store.fetch(newest, back),
            "s3fs": lambda: filesystem.get_file(object_url, os.path.join(back, "s3fs")),
            "boto3": lambda: client.download_file(BUCKET, key, os.path.join(back, "boto3")),
        }
        rates_down = {name: size_mb / seconds(act) for name, act in down.items()}
        shutil.rmtree(back)
    for what, rates in (("publish", rates_up), ("restore", rates_down)):
        shown = ", ".join(f"{name} {rates[name]:,.0f} MB/s" for name in ("ours", "s3fs", "boto3"))
        print(f"{size_mb:,} MB, {what}: {shown}", flush=True)


def main() -> int:
    options = arguments(__doc__, rounds=7)
    logging.getLogger("ray_estimator").setLevel(logging.ERROR)  # overtaken saves are meant to be
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    comparisons = []
    with s3_server() as endpoint:
        client = bucket_client(endpoint)
        for size_mb in SIZES_MB:
            comparisons += compare_saves(size_mb, endpoint, options.rounds)
            report_throughput(size_mb, endpoint, client)
    return report(comparisons, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
