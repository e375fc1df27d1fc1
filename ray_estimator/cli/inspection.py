"""`inspect`: report the contents of a model_dir. Reads only."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray_estimator._checkpoints.event_files import EVENT_FILES, is_eval_dir_name
from ray_estimator._checkpoints.files import CheckpointFiles
from ray_estimator._checkpoints.retention import Checkpoint, Published
from ray_estimator._checkpoints.state_file import StateFile
from ray_estimator._checkpoints.state_proto import UNKNOWN_TIME, CheckpointState
from ray_estimator._checkpoints.writers import last_driver
from ray_estimator._data.position import InputPosition
from ray_estimator._process.quiet import quiet_tensorflow
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import CheckpointDamagedError

TRAINING = "training"


@dataclass(frozen=True)
class CheckpointReport:
    """One checkpoint.

    Attributes:
        name: Name in model_dir.
        step: Global step.
        size: Size of all files, in bytes.
        published: Whether it is in the state file.
        published_at: Time of publication, in seconds since the epoch; None if unknown.
        has_manifest: Whether sizes and checksums are known. Checkpoints published by TensorFlow have no manifest.
        defect: What is wrong with it; None if it is intact.
    """

    name: str
    step: int
    size: int
    published: bool
    published_at: float | None
    has_manifest: bool
    defect: str | None


@dataclass(frozen=True)
class Report:
    """The contents of a model_dir.

    Attributes:
        model_dir: Its URL.
        checkpoints: Published checkpoints, oldest first, then unpublished ones.
        state_file_defect: What is wrong with the state file, which lists the published ones; None if it is valid.
        writer: The last process that trained: host, pid, start time, and whether it has ended. None if there is none.
        position: Position in the input at the newest checkpoint; None if unknown.
        metrics: Scalars by name, by global step, by evaluation (and `TRAINING`).
    """

    model_dir: str
    checkpoints: tuple[CheckpointReport, ...]
    state_file_defect: str | None
    writer: Mapping[str, Any] | None
    position: Mapping[str, Any] | None
    metrics: Mapping[str, Mapping[int, Mapping[str, float]]]

    @property
    def is_damaged(self) -> bool:
        """Whether a published checkpoint or the state file is damaged."""
        damaged = any(each.published and each.defect is not None for each in self.checkpoints)
        return damaged or self.state_file_defect is not None

    def to_json(self) -> dict[str, Any]:
        """Return it for JSON, with NaN and infinity as strings."""
        return {**_plain(dataclasses.asdict(self)), "is_damaged": self.is_damaged}


def inspect(model_dir: str, storage: Storage, *, last: int, verify: bool) -> Report:
    """Return a report of a model_dir.

    Args:
        model_dir: Local path or URL.
        storage: Access to it.
        last: Number of global steps to read metrics of.
        verify: Whether to read every byte of every published checkpoint. Otherwise only the sizes of files on object
            stores are checked.

    Raises:
        FileNotFoundError: model_dir is empty or does not exist.
    """
    model_dir = storage.normalize(model_dir)
    if not storage.list_dir(model_dir):
        raise FileNotFoundError(f"no files in {storage.redacted(model_dir)}")
    files = CheckpointFiles(storage)
    state_file = StateFile(model_dir, storage, files)
    content = state_file.content()
    defect = None if content is None else _defect_of_state(content)
    published = () if defect is not None else state_file.parse(content).published
    reports = [_report(each, files, storage, verify) for each in published]
    reports += [_unpublished(each, files) for each in _others(model_dir, storage, published)]
    return Report(
        storage.redacted(model_dir),
        tuple(reports),
        defect,
        _writer(model_dir, storage),
        _position(published, files),
        dict(_metrics(model_dir, storage, last)) if last else {},
    )


def _defect_of_state(content: bytes) -> str | None:
    try:
        CheckpointState.from_text(content.decode())
    except ValueError as error:
        return str(error)
    return None


def _report(published: Published, files: CheckpointFiles, storage: Storage, verify: bool) -> CheckpointReport:
    checkpoint = published.checkpoint
    defect = files.defect_of(checkpoint)
    if defect is None and verify:
        defect = _defect_of_bytes(checkpoint, files, storage)
    return CheckpointReport(
        checkpoint.name,
        checkpoint.step,
        sum(files.sizes(checkpoint).values()),
        True,
        None if published.timestamp == UNKNOWN_TIME else published.timestamp,
        checkpoint.manifest is not None,
        defect,
    )


def _defect_of_bytes(checkpoint: Checkpoint, files: CheckpointFiles, storage: Storage) -> str | None:
    if storage.local_path(checkpoint.path) is not None:
        return None  # The checksums of local files are checked already.
    with tempfile.TemporaryDirectory(prefix="ray-estimator-") as folder:
        try:
            files.download(checkpoint, os.path.join(folder, checkpoint.name))
        except CheckpointDamagedError as error:
            return error.reason
    return None


def _others(model_dir: str, storage: Storage, published: tuple[Published, ...]) -> Iterator[Checkpoint]:
    known = {each.checkpoint.name for each in published}
    found = {name.removesuffix(".index") for name in storage.list_dir(model_dir) if name.endswith(".index")}
    for name in sorted(found - known, key=lambda name: (Checkpoint.at(name).step, name)):
        yield Checkpoint.at(storage.join(model_dir, name))


def _unpublished(checkpoint: Checkpoint, files: CheckpointFiles) -> CheckpointReport:
    checkpoint = files.with_manifest(checkpoint)
    size, defect = sum(files.sizes(checkpoint).values()), files.defect_of(checkpoint)
    return CheckpointReport(
        checkpoint.name, checkpoint.step, size, False, None, checkpoint.manifest is not None, defect
    )


def _writer(model_dir: str, storage: Storage) -> Mapping[str, Any] | None:
    record = last_driver(model_dir, storage)
    if record is None:
        return None
    ended = record.released or record.writer.is_dead()
    return {"host": record.writer.host, "pid": record.writer.pid, "since": record.since, "ended": ended}


def _position(published: tuple[Published, ...], files: CheckpointFiles) -> Mapping[str, Any] | None:
    for each in reversed(published):
        try:
            manifest = files.manifest(each.checkpoint)
        except CheckpointDamagedError:
            continue
        position = None if manifest is None else InputPosition.from_json(manifest.position)
        return None if position is None else position.to_json()
    return None


def _metrics(model_dir: str, storage: Storage, last: int) -> Iterator[tuple[str, dict[int, dict[str, float]]]]:
    """Yield the scalars of training and of each evaluation, as in TensorBoard."""
    names = [name for name in storage.list_dir(model_dir) if is_eval_dir_name(name)]
    for name, folder in [(TRAINING, model_dir), *((name, storage.join(model_dir, name)) for name in names)]:
        if not storage.glob(folder, EVENT_FILES):
            continue
        with quiet_tensorflow():
            from ray_estimator._engine.events.reader import scalars
        steps = scalars(storage, folder, EVENT_FILES)
        if steps:
            yield name, dict(list(steps.items())[-last:])


def age_of(report: CheckpointReport) -> float | None:
    """Return the seconds since publication; None if unknown."""
    return None if report.published_at is None else max(time.time() - report.published_at, 0.0)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
