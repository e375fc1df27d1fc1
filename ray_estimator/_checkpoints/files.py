"""The files of a checkpoint on a store: verification, upload, download, deletion."""

from __future__ import annotations

import logging
import os
import re
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from ray_estimator._checkpoints import manifest as manifest_module
from ray_estimator._checkpoints.manifest import FileRecord, Manifest, record_of
from ray_estimator._checkpoints.retention import Checkpoint
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import CheckpointDamagedError

_SUFFIX = re.compile(rf"\.(index|meta|input-\d+-of-\d+|data-\d+-of-(\d+))|{re.escape(manifest_module.SUFFIX)}")
_OPTIONAL = ".meta"
_DOWNLOADS = 2

logger = logging.getLogger(__name__)


def has_suffix(path: str) -> bool:
    """Whether `path` is a file of a checkpoint, rather than its prefix."""
    match = re.search(rf"({_SUFFIX.pattern})$", path)
    return match is not None


def suffixes_in(names: Iterable[str], checkpoint: Checkpoint) -> list[str]:
    """Return the suffixes of a checkpoint's files in a listing; the index, which makes them a checkpoint, is last."""
    suffixes = [name.removeprefix(checkpoint.name) for name in names if name.startswith(checkpoint.name)]
    return sorted(filter(_SUFFIX.fullmatch, suffixes), key=lambda suffix: (suffix == ".index", suffix))


class CheckpointFiles:
    """Reads, writes and deletes the files of checkpoints, published or not.

    Args:
        storage: Accesses them.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def sizes(self, checkpoint: Checkpoint) -> dict[str, int]:
        """Return sizes in bytes by suffix, including the manifest; empty if there are no files."""
        sizes = self._storage.sizes(checkpoint.path.removesuffix(checkpoint.name))
        return {suffix: sizes[checkpoint.name + suffix] for suffix in suffixes_in(sizes, checkpoint)}

    def with_manifest(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return `checkpoint` with the digest of the manifest file next to it, if there is one."""
        try:
            content = self._storage.read_bytes(checkpoint.path + manifest_module.SUFFIX)
        except FileNotFoundError:
            return replace(checkpoint, manifest=None)
        return replace(checkpoint, manifest=manifest_module.digest_of(content))

    def defect_of(self, checkpoint: Checkpoint) -> str | None:
        """Describe what is wrong with the files; None if the checkpoint is intact.

        Names and sizes, and the checksums of local files, are compared with the manifest. Without a manifest only the
        names are checked.
        """
        try:
            self._verify(checkpoint)
        except _Defect as defect:
            return f"{checkpoint.name}{defect}"
        return None

    def require_intact(self, checkpoint: Checkpoint) -> None:
        """Raise `CheckpointDamagedError` if `defect_of` finds a defect."""
        defect = self.defect_of(checkpoint)
        if defect is not None:
            raise CheckpointDamagedError(self._storage.redacted(checkpoint.path), f"it is damaged: {defect}.")

    def _verify(self, checkpoint: Checkpoint) -> dict[str, FileRecord]:
        """Return a record of each file by suffix; without a manifest the checksums are unknown.

        Raises:
            _Defect: The checkpoint is damaged.
        """
        sizes = self.sizes(checkpoint)
        manifest = self._manifest(checkpoint)
        if manifest is None:
            _require_all(sizes)
            return {
                suffix: FileRecord(size, None) for suffix, size in sizes.items() if suffix != manifest_module.SUFFIX
            }
        expected = {
            suffix: record for suffix, record in manifest.files.items() if suffix in sizes or suffix != _OPTIONAL
        }
        for suffix, record in expected.items():
            if suffix not in sizes:
                raise _Defect(f"{suffix} is missing")
            if sizes[suffix] != record.size:
                raise _Defect(f"{suffix} has {sizes[suffix]} bytes instead of {record.size}")
        local_prefix = self._storage.local_path(checkpoint.path)
        for suffix, record in expected.items():
            if local_prefix is not None and _record_or_none(local_prefix + suffix) != record:
                raise _Defect(f"{suffix} has a wrong checksum")
        return expected

    def manifest(self, checkpoint: Checkpoint) -> Manifest | None:
        """Return the manifest; None for a checkpoint that TensorFlow published.

        Raises:
            CheckpointDamagedError: It is missing, or differs from the one that was published.
        """
        try:
            return self._manifest(checkpoint)
        except _Defect as defect:
            raise CheckpointDamagedError(
                self._storage.redacted(checkpoint.path), f"it is damaged: {checkpoint.name}{defect}."
            ) from None

    def _manifest(self, checkpoint: Checkpoint) -> Manifest | None:
        """As `manifest`.

        Raises:
            _Defect: It is missing, or differs from the one that was published.
        """
        if checkpoint.manifest is None:
            return None
        try:
            content = self._storage.read_bytes(checkpoint.path + manifest_module.SUFFIX)
        except FileNotFoundError:
            raise _Defect(f"{manifest_module.SUFFIX} is missing") from None
        if manifest_module.digest_of(content) != checkpoint.manifest:
            raise _Defect(f"{manifest_module.SUFFIX} is not the one that was published")
        try:
            return Manifest.from_bytes(content)
        except ValueError as error:
            raise _Defect(f"{manifest_module.SUFFIX} {error}") from error

    def download(self, checkpoint: Checkpoint, local_prefix: str) -> None:
        """Copy the files to `local_prefix`, and verify them during the copy.

        Raises:
            CheckpointDamagedError: The files do not match the manifest.
        """
        try:
            for suffix, record in self._verify(checkpoint).items():
                self._download(checkpoint.path + suffix, local_prefix + suffix, record)
        except _Defect as defect:
            raise CheckpointDamagedError(
                self._storage.redacted(checkpoint.path), f"it is damaged: {checkpoint.name}{defect}."
            ) from None
        except Exception:
            # Concurrent deletion or replacement raises different errors on each store.
            self.require_intact(checkpoint)
            raise

    def _download(self, url: str, local_path: str, record: FileRecord) -> None:
        for attempt in range(1, _DOWNLOADS + 1):
            checksum = self._copy(url, local_path, record.size)
            if record.crc32 in (None, checksum):
                return
            logger.warning(
                "Wrong checksum of %s (download %d of %d).", self._storage.redacted(url), attempt, _DOWNLOADS
            )
        raise _Defect(f"{os.path.splitext(local_path)[1]} has a wrong checksum")

    def _copy(self, url: str, local_path: str, size: int) -> int:
        """Copy a file; return the checksum."""
        checksum = 0
        with open(local_path, "wb") as file:
            for chunk in self._storage.read_chunks(url, size):
                checksum = zlib.crc32(chunk, checksum)
                file.write(chunk)
        return checksum

    def put(self, local_prefix: str, target: Checkpoint, manifest: Manifest, *, move: bool) -> None:
        """Upload local files as `target`, which must not be published: data first, the manifest last.

        Args:
            local_prefix: Local path of the files, without suffix.
            target: The checkpoint to write or replace.
            manifest: Describes the files.
            move: Whether the local files may be moved.
        """
        self.delete(target, list(self.sizes(target)))
        path = self._storage.local_path(target.path)
        for suffix in sorted(manifest.files, key=lambda suffix: (suffix == ".index", suffix)):
            self._storage.put_file(local_prefix + suffix, target.path + suffix, move=move)
            if path is not None:
                manifest_module.cache_record(path + suffix, manifest.files[suffix])
        self._storage.write_bytes(target.path + manifest_module.SUFFIX, manifest.to_bytes())

    def delete(self, checkpoint: Checkpoint, suffixes: Sequence[str]) -> None:
        """Delete files with these suffixes, the last one first: without its index a checkpoint is invalid."""
        for suffix in reversed(suffixes):
            self._storage.remove(checkpoint.path + suffix)


def records_of(local_prefix: str) -> dict[str, FileRecord]:
    """Return a record of each file of a local checkpoint, by suffix.

    Raises:
        CheckpointDamagedError: Files are missing.
    """
    local = Checkpoint.at(local_prefix)
    suffixes = suffixes_in(os.listdir(os.path.dirname(local_prefix)), local)
    try:
        _require_all(suffixes)
    except _Defect as defect:
        raise CheckpointDamagedError(local_prefix, f"it is damaged: {local.name}{defect}.") from None
    return {suffix: record_of(local_prefix + suffix) for suffix in suffixes if suffix != manifest_module.SUFFIX}


class _Defect(Exception):
    """A defect of a checkpoint; the message starts with the suffix of a file."""


def _record_or_none(path: str) -> FileRecord | None:
    try:
        return record_of(path)
    except FileNotFoundError:
        return None


def _require_all(suffixes: Collection[str]) -> None:
    """Raise `_Defect` if the index is missing, or a data shard of a set with at least one shard."""
    matches = [_SUFFIX.fullmatch(suffix) for suffix in suffixes]
    totals = sorted({match.group(2) for match in matches if match and match.group(2)}) or ["00001"]
    needed = [".index", *(f".data-{shard:05d}-of-{total}" for total in totals for shard in range(int(total)))]
    missing = [suffix for suffix in needed if suffix not in suffixes]
    if missing:
        raise _Defect(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
