"""CPUs of training workers, of which one is left for Ray Data; model_dirs that workers cannot share."""

from __future__ import annotations

import pytest

from ray_estimator._runtime.resources import require_outside_this_process, require_shared, resources_per_worker


def test_workers_that_fit_get_rays_defaults() -> None:
    assert resources_per_worker(2, False, None, cluster_cpus=4, reads_rows=True) is None


def test_unset_resources_shrink_until_ray_data_has_a_cpu() -> None:
    assert resources_per_worker(2, False, None, cluster_cpus=2, reads_rows=True) == {"CPU": 0.5}
    assert resources_per_worker(3, False, None, cluster_cpus=3, reads_rows=True) == {"CPU": 0.66}


def test_on_a_cluster_scaled_to_zero_nothing_shrinks() -> None:
    assert resources_per_worker(4, False, None, cluster_cpus=0, reads_rows=True) is None


def test_without_rows_nothing_shrinks() -> None:
    assert resources_per_worker(2, False, None, cluster_cpus=2, reads_rows=False) is None


def test_workers_on_gpus_take_no_cpu() -> None:
    assert resources_per_worker(8, True, None, cluster_cpus=2, reads_rows=True) is None


def test_explicit_resources_that_leave_ray_data_no_cpu_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"uses 4 of the cluster's 4 CPUs \(2 workers of 2\) and leaves 0"):
        resources_per_worker(2, False, {"CPU": 2}, cluster_cpus=4, reads_rows=True)


def test_explicit_resources_beyond_the_cluster_are_left_to_the_autoscaler() -> None:
    requested = {"CPU": 16.0}
    assert resources_per_worker(2, False, requested, cluster_cpus=4, reads_rows=True) == requested


def test_a_temporary_model_dir_on_several_nodes_is_rejected() -> None:
    require_shared("/tmp/x", is_temporary=True, num_nodes=1)
    require_shared("/shared/x", is_temporary=False, num_nodes=3)
    with pytest.raises(ValueError, match=r"3 nodes.*model_dir"):
        require_shared("/tmp/x", is_temporary=True, num_nodes=3)


def test_a_model_dir_in_memory_is_rejected_for_workers() -> None:
    require_outside_this_process("/memory/a")
    with pytest.raises(ValueError, match=r"model_dir is in the memory.*got 'memory://a/b'.*num_workers=0"):
        require_outside_this_process("memory://a/b")
