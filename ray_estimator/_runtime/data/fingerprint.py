"""What tells one Ray Dataset from another, without reading it: its files, its plan, its size. On the driver."""

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
from ray_estimator._storage.content_marks import content_marks

logger = logging.getLogger(__name__)


def fingerprint(dataset: Dataset, schema: pa.Schema, columns: tuple[str, ...]) -> dict[str, str]:
    """What tells `dataset` from another one, by names that a person knows.

    Args:
        dataset: The dataset, as the user gave it.
        schema: Its schema.
        columns: The columns that are used.

    Returns:
        The types of the columns; the names of the operators; files, by their names, sizes, and times or etags; of a
        dataset that is in memory how many rows it has, since another materialize() cuts other blocks.
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
    """A line for each file that an operator reads; none where Ray does not say which."""
    paths, files = ray_private.files_read(operator)
    if not isinstance(files, pyarrow.fs.FileSystem):
        return
    for path in paths:
        try:
            yield from _lines_below(files, path)
        except Exception as error:  # Stores raise what they like.
            # Perhaps only workers can look: then what is read there is not compared.
            logger.info("The files of the dataset could not be listed: %s", error)


def _lines_below(files: pyarrow.fs.FileSystem, path: str) -> Iterator[str]:
    wrapped = files.unwrap() if hasattr(files, "unwrap") else files  # Ray Data's retries
    handler = getattr(wrapped, "handler", None)
    if isinstance(handler, pyarrow.fs.FSSpecHandler):
        # Arrow would pass on neither times nor etags.
        handler.fs.invalidate_cache(path)
        for name, info in handler.fs.find(path, detail=True).items():
            yield f"{name} {content_marks(info)}"
        return
    (found,) = files.get_file_info([path])
    is_dir = found.type == pyarrow.fs.FileType.Directory
    below = files.get_file_info(pyarrow.fs.FileSelector(path, recursive=True)) if is_dir else [found]
    for info in below:
        if info.is_file:
            yield f"{info.path} {info.size} {info.mtime_ns}"
