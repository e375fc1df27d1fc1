"""How many CPUs training workers take, so that Ray Data keeps one."""

from __future__ import annotations

import pytest

from ray_estimator._runtime.resources import require_outside_this_process, require_shared, resources_per_worker


def test_workers_that_fit_are_left_to_ray() -> None:
    assert resources_per_worker(2, False, None, cluster_cpus=4, reads_rows=True) is None


def test_unset_resources_shrink_until_ray_data_has_a_cpu() -> None:
    assert resources_per_worker(2, False, None, cluster_cpus=2, reads_rows=True) == {"CPU": 0.5}
    assert resources_per_worker(3, False, None, cluster_cpus=3, reads_rows=True) == {"CPU": 0.66}


def test_on_a_cluster_at_rest_nothing_shrinks() -> None:
    assert resources_per_worker(4, False, None, cluster_cpus=0, reads_rows=True) is None


def test_without_rows_nothing_shrinks() -> None:
    assert resources_per_worker(2, False, None, cluster_cpus=2, reads_rows=False) is None


def test_workers_on_gpus_take_no_cpu() -> None:
    assert resources_per_worker(8, True, None, cluster_cpus=2, reads_rows=True) is None


def test_explicit_resources_that_starve_ray_data_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"uses 4 of the cluster's 4 CPUs \(2 workers of 2\) and leaves 0"):
        resources_per_worker(2, False, {"CPU": 2}, cluster_cpus=4, reads_rows=True)


def test_explicit_resources_beyond_the_cluster_are_an_autoscalers_business() -> None:
    asked = {"CPU": 16.0}
    assert resources_per_worker(2, False, asked, cluster_cpus=4, reads_rows=True) == asked


def test_a0_a_temporary_model_dir_on_several_nodes_is_refused() -> None:
    require_shared("/tmp/x", is_temporary=True, num_nodes=1)
    require_shared("/shared/x", is_temporary=False, num_nodes=3)
    with pytest.raises(ValueError, match=r"3 nodes.*model_dir"):
        require_shared("/tmp/x", is_temporary=True, num_nodes=3)


def test_the_memory_of_this_process_is_no_model_dir_for_workers() -> None:
    require_outside_this_process("/memory/a")
    with pytest.raises(ValueError, match=r"model_dir is in the memory.*got 'memory://a/b'.*num_workers=0"):
        require_outside_this_process("memory://a/b")
