"""Each private name of Ray that needs a running Ray."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from ray_estimator._runtime import ray_private
from ray_estimator._runtime.data.streaming import in_order
from ray_estimator._runtime.tasks import gpu_reclaim

pytestmark = pytest.mark.ray


def test_values_are_stored_and_taken_once(cluster: Any) -> None:
    cluster.get(cluster.remote(ray_private.put_value).remote(b"test key", b"value"))
    assert ray_private.pop_value(b"test key") == b"value"
    assert ray_private.pop_value(b"test key") is None


def test_ray_says_which_nodes_are_draining(cluster: Any) -> None:
    assert ray_private.draining_nodes() == set()


def test_a_task_has_a_title_of_ray(cluster: Any) -> None:
    def titles() -> tuple[bool, bool]:
        title = gpu_reclaim._title(os.getpid())
        return ray_private.is_ray_process(title), ray_private.is_idle_process(title)

    assert cluster.get(cluster.remote(titles).remote()) == (True, False)


def test_blocks_in_memory_are_found_without_an_execution(cluster: Any) -> None:
    dataset = cluster.data.range(4, override_num_blocks=2)
    in_memory = ray_private.blocks_in_memory(dataset.materialize())
    assert in_memory is not None
    assert sum(entry.metadata.num_rows for bundle in in_memory for entry in bundle.blocks) == 4
    assert ray_private.blocks_in_memory(dataset) is None


def test_a_copy_has_a_context_of_its_own(cluster: Any) -> None:
    dataset = cluster.data.range(4)
    copy = ray_private.copied(dataset)
    copy.context.execution_options.preserve_order = True
    assert not dataset.context.execution_options.preserve_order


def double(batch: dict[str, Any]) -> dict[str, Any]:
    return {"id": batch["id"] * 2}


def test_operators_and_the_files_that_they_read(cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rows.csv").write_text("id\n1\n2\n")
    cluster.data.range(2).write_parquet(str(tmp_path / "parquet"))
    for dataset, path in [
        (cluster.data.read_csv(str(tmp_path / "rows.csv")), tmp_path / "rows.csv"),
        (cluster.data.read_parquet(str(tmp_path / "parquet")), tmp_path / "parquet"),
    ]:
        *sources, last = ray_private.operators(dataset.map_batches(double))
        assert last.name == "MapBatches(double)"
        paths, filesystem = next(read for read in map(ray_private.files_read, sources) if read[0])
        assert paths == [str(path)]
        assert filesystem is not None
    assert [ray_private.files_read(operator)[0] for operator in ray_private.operators(cluster.data.range(2))] == [[]]
    assert caplog.text == ""


def test_files_that_ray_does_not_name_are_logged(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rows.csv").write_text("id\n1\n")
    source = next(
        operator.datasource
        for operator in ray_private.operators(cluster.data.read_csv(str(tmp_path / "rows.csv")))
        if hasattr(operator, "datasource")
    )
    monkeypatch.delattr(source, "_filesystem")
    ray_private.files_read(source)
    assert "does not name the files of CSVDatasource" in caplog.text


seen: list[Any] = []
executed = threading.Event()


class _Callback(ray_private.execution_callback()):  # type: ignore[misc]
    def before_execution_starts(self, executor: Any) -> None:
        seen.append(executor)

    def after_execution_succeeds(self, executor: Any) -> None:
        executed.set()


def test_a_callback_gets_the_executor_and_its_operators(cluster: Any) -> None:
    dataset = in_order(cluster.data.range(4).map_batches(double))
    ray_private.add_execution_callback(dataset, _Callback)
    for _ in dataset.iter_internal_ref_bundles():
        names = [name for name, _ in ray_private.unfinished_operators(seen[-1])]
    assert executed.wait(60)
    assert len(seen) == 1
    assert ray_private.unfinished_operators(seen[0]) == []
    assert all("double" in name or "Read" in name or "Input" in name for name in names)
