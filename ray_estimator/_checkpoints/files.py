"""The files of one checkpoint on a store: whether they are whole, and the ways there and back."""

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
_NOT_NEEDED = ".meta"
_DOWNLOADS = 2

logger = logging.getLogger(__name__)


def has_suffix(path: str) -> bool:
    """Whether `path` names a file of a checkpoint, rather than the checkpoint."""
    match = re.search(rf"({_SUFFIX.pattern})$", path)
    return match is not None


def suffixes_in(names: Iterable[str], checkpoint: Checkpoint) -> list[str]:
    """What follows the prefix in the names of a checkpoint's files; the index is last, without it they are none."""
    suffixes = [name.removeprefix(checkpoint.name) for name in names if name.startswith(checkpoint.name)]
    return sorted(filter(_SUFFIX.fullmatch, suffixes), key=lambda suffix: (suffix == ".index", suffix))


class CheckpointFiles:
    """Reads, writes and deletes the files of checkpoints, published or not.

    Args:
        storage: Opens them.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def sizes(self, checkpoint: Checkpoint) -> dict[str, int]:
        """Sizes in bytes by suffix, the manifest's among them; empty if there are no files."""
        sizes = self._storage.sizes(checkpoint.path.removesuffix(checkpoint.name))
        return {suffix: sizes[checkpoint.name + suffix] for suffix in suffixes_in(sizes, checkpoint)}

    def with_manifest(self, checkpoint: Checkpoint) -> Checkpoint:
        """`checkpoint` with the digest of the manifest that lies beside it, if one does."""
        try:
            content = self._storage.read_bytes(checkpoint.path + manifest_module.SUFFIX)
        except FileNotFoundError:
            return replace(checkpoint, manifest=None)
        return replace(checkpoint, manifest=manifest_module.digest_of(content))

    def defect_of(self, checkpoint: Checkpoint) -> str | None:
        """What is wrong with the files, in words; None if the checkpoint is whole.

        By its manifest: the names, the sizes and, of local files, the checksums. Without one: the names.
        """
        try:
            self._examined(checkpoint)
        except _Defect as defect:
            return f"{checkpoint.name}{defect}"
        return None

    def require_whole(self, checkpoint: Checkpoint) -> None:
        """Raises `CheckpointDamagedError` if `defect_of` finds something."""
        defect = self.defect_of(checkpoint)
        if defect is not None:
            raise CheckpointDamagedError(self._storage.redacted(checkpoint.path), f"it is not whole: {defect}.")

    def _examined(self, checkpoint: Checkpoint) -> dict[str, FileRecord]:
        """A record of each file, by suffix; without a manifest their checksums are unknown.

        Raises:
            _Defect: The checkpoint is not whole.
        """
        sizes = self.sizes(checkpoint)
        manifest = self._manifest(checkpoint)
        if manifest is None:
            _require_all(sizes)
            return {
                suffix: FileRecord(size, None) for suffix, size in sizes.items() if suffix != manifest_module.SUFFIX
            }
        there = {
            suffix: record for suffix, record in manifest.files.items() if suffix in sizes or suffix != _NOT_NEEDED
        }
        for suffix, record in there.items():
            if suffix not in sizes:
                raise _Defect(f"{suffix} is missing")
            if sizes[suffix] != record.size:
                raise _Defect(f"{suffix} has {sizes[suffix]} bytes instead of {record.size}")
        local_prefix = self._storage.local_path(checkpoint.path)
        for suffix, record in there.items():
            if local_prefix is not None and _record_or_none(local_prefix + suffix) != record:
                raise _Defect(f"{suffix} has another content than was written")
        return there

    def manifest(self, checkpoint: Checkpoint) -> Manifest | None:
        """The manifest of a checkpoint that has one.

        Raises:
            CheckpointDamagedError: It is not there, or another one than was published.
        """
        try:
            return self._manifest(checkpoint)
        except _Defect as defect:
            raise CheckpointDamagedError(
                self._storage.redacted(checkpoint.path), f"it is not whole: {checkpoint.name}{defect}."
            ) from None

    def _manifest(self, checkpoint: Checkpoint) -> Manifest | None:
        """The manifest of a checkpoint that has one.

        Raises:
            _Defect: It is not there, or another one than was published.
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
        """Copies the files to `local_prefix`, and verifies them meanwhile.

        Raises:
            CheckpointDamagedError: They are not, or no longer, what the manifest says.
        """
        try:
            for suffix, record in self._examined(checkpoint).items():
                self._download(checkpoint.path + suffix, local_prefix + suffix, record)
        except _Defect as defect:
            raise CheckpointDamagedError(
                self._storage.redacted(checkpoint.path), f"it is not whole: {checkpoint.name}{defect}."
            ) from None
        except Exception:
            # Whoever deletes or replaces the files just now makes the store raise what it likes.
            self.require_whole(checkpoint)
            raise

    def _download(self, url: str, local_path: str, record: FileRecord) -> None:
        for _ in range(_DOWNLOADS):
            checksum = self._copy(url, local_path, record.size)
            if record.crc32 in (None, checksum):
                return
            logger.warning("%s came with a wrong checksum.", self._storage.redacted(url))
        raise _Defect(f"{os.path.splitext(local_path)[1]} has another content than was written")

    def _copy(self, url: str, local_path: str, size: int) -> int:
        """The checksum of what was copied."""
        checksum = 0
        with open(local_path, "wb") as file:
            for chunk in self._storage.read_chunks(url, size):
                checksum = zlib.crc32(chunk, checksum)
                file.write(chunk)
        return checksum

    def put(self, local_prefix: str, target: Checkpoint, manifest: Manifest, *, move: bool) -> None:
        """Put local files in the place of `target`, which is not published: the data first, the manifest last.

        Args:
            local_prefix: Local path of the files, without suffix.
            target: Where to.
            manifest: Describes them.
            move: The local files are needed no more.
        """
        self.delete(target, list(self.sizes(target)))
        path = self._storage.local_path(target.path)
        for suffix in sorted(manifest.files, key=lambda suffix: (suffix == ".index", suffix)):
            self._storage.put_file(local_prefix + suffix, target.path + suffix, move=move)
            if path is not None:
                manifest_module.know(path + suffix, manifest.files[suffix])
        self._storage.write_bytes(target.path + manifest_module.SUFFIX, manifest.to_bytes())

    def delete(self, checkpoint: Checkpoint, suffixes: Sequence[str]) -> None:
        """Deletes files, as `suffixes_in` orders them; the index first, so that what is left looks like what it is."""
        for suffix in reversed(suffixes):
            self._storage.remove(checkpoint.path + suffix)


def records_of(local_prefix: str) -> dict[str, FileRecord]:
    """A record of each file of a checkpoint that lies on this host, by suffix.

    Raises:
        CheckpointDamagedError: Files are missing.
    """
    local = Checkpoint.at(local_prefix)
    suffixes = suffixes_in(os.listdir(os.path.dirname(local_prefix)), local)
    try:
        _require_all(suffixes)
    except _Defect as defect:
        raise CheckpointDamagedError(local_prefix, f"it is not whole: {local.name}{defect}.") from None
    return {suffix: record_of(local_prefix + suffix) for suffix in suffixes if suffix != manifest_module.SUFFIX}


class _Defect(Exception):
    """What is wrong with a checkpoint; begins with the suffix of a file."""


def _record_or_none(path: str) -> FileRecord | None:
    try:
        return record_of(path)
    except FileNotFoundError:
        return None


def _require_all(suffixes: Collection[str]) -> None:
    """Raises `_Defect` if a checkpoint without manifest lacks its index, or a data shard of a set that has begun."""
    matches = [_SUFFIX.fullmatch(suffix) for suffix in suffixes]
    totals = sorted({match.group(2) for match in matches if match and match.group(2)}) or ["00001"]
    needed = [".index", *(f".data-{shard:05d}-of-{total}" for total in totals for shard in range(int(total)))]
    missing = [suffix for suffix in needed if suffix not in suffixes]
    if missing:
        raise _Defect(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
