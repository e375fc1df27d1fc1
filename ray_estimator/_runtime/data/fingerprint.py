"""Fingerprints of Ray Datasets by files, plan and size, without reading them. Runs on the driver."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs
from ray.data import Dataset
from ray.data.dataset import MaterializedDataset

from ray_estimator._runtime import ray_private
from ray_estimator._storage.content_version import version_attributes

logger = logging.getLogger(__name__)


def fingerprint(dataset: Dataset, schema: pa.Schema, columns: tuple[str, ...]) -> dict[str, str]:
    """Return the properties that identify `dataset`, by readable names.

    Args:
        dataset: The user's dataset.
        schema: Its schema.
        columns: The columns in use.

    Returns:
        The types of the columns, the names of the operators, and a digest of the files (names, sizes, and times or
        etags). For a dataset in memory, the number of rows instead, since each materialize() may create other blocks.
    """
    parts = {"columns": ", ".join(f"{name}: {schema.field(name).type}" for name in sorted(columns))}
    if isinstance(dataset, MaterializedDataset):
        return {**parts, "size": f"{dataset.count()} rows"}
    operators = ray_private.operators(dataset)
    parts["operators"] = " -> ".join(operator.name for operator in operators)
    files = sorted(line for operator in operators for line in _files_of(operator))
    if files:
        digest = hashlib.sha256("\n".join(files).encode()).hexdigest()
        parts["files"] = f"{len(files)} files, {digest[:16]}"
    return parts


def _files_of(operator: Any) -> Iterator[str]:
    """Yield a line for each file that an operator reads; none if the operator does not expose its files."""
    paths, files = ray_private.files_read(operator)
    if not isinstance(files, pyarrow.fs.FileSystem):
        return
    for path in paths:
        try:
            yield from _lines_below(files, path)
        except Exception as error:  # Filesystems have their own error classes.
            # The driver may lack access that workers have. Changes of the files then go undetected.
            logger.info("Cannot list the files of the dataset at %s, so changes there go undetected: %s", path, error)


def _lines_below(files: pyarrow.fs.FileSystem, path: str) -> Iterator[str]:
    """Yield a line for each file at or below `path`."""
    wrapped = files.unwrap() if hasattr(files, "unwrap") else files  # Ray Data's retries
    handler = getattr(wrapped, "handler", None)
    if isinstance(handler, pyarrow.fs.FSSpecHandler):
        # Arrow provides neither times nor etags of these.
        handler.fs.invalidate_cache(path)
        for name, info in handler.fs.find(path, detail=True).items():
            yield f"{name} {version_attributes(info)}"
        return
    (found,) = files.get_file_info([path])
    is_dir = found.type == pyarrow.fs.FileType.Directory
    below = files.get_file_info(pyarrow.fs.FileSelector(path, recursive=True)) if is_dir else [found]
    for info in below:
        if info.is_file:
            yield f"{info.path} {info.size} {info.mtime_ns}"
