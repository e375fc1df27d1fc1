"""Private and undocumented names of Ray: no other module uses them.

Each has a test, in tests/unit/test_ray_private.py or tests/ray/test_ray_private_on_ray.py. `require_names` checks the
names without a fallback before work starts; a docstring says so where a missing name has another effect.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.util.debug import log_once

logger = logging.getLogger(__name__)

EXECUTION_LOGGER = "ray.data._internal.execution.streaming_executor"
"""Logs the end of each execution of a Dataset. If Ray renames it, those lines appear in the log again."""

_TITLE = b"ray::"
_TRAIN_CONSTANTS = "ray.train.v2._internal.constants"
_TRAIN_ERRORS = "ray.train.v2._internal.exceptions"
_MODULES = {
    "ENABLE_PREEMPTION_WATCHER_ENV_VAR": _TRAIN_CONSTANTS,
    "ENABLE_PRINT_PATCH_ENV_VAR": _TRAIN_CONSTANTS,
    "HEALTH_CHECK_INTERVAL_S_ENV_VAR": _TRAIN_CONSTANTS,
    "METRICS_ENABLED_ENV_VAR": _TRAIN_CONSTANTS,
    "WORKER_GROUP_START_TIMEOUT_S_ENV_VAR": _TRAIN_CONSTANTS,
    "UserExceptionWithTraceback": _TRAIN_ERRORS,
    "WorkerGroupStartupFailedError": _TRAIN_ERRORS,
    "WorkerGroupStartupTimeoutError": _TRAIN_ERRORS,
    "WorkerHealthCheckFailedError": _TRAIN_ERRORS,
    "ExecutionCallback": "ray.data._internal.execution.execution_callback",
    "SourceOperator": "ray.data._internal.logical.interfaces",
    "WORKER_PROCESS_TYPE_IDLE_WORKER": "ray._private.ray_constants",
}


def require_names() -> None:
    """Check every name without a fallback. On the driver, before work starts.

    Raises:
        ImportError: The installed Ray lacks one of them.
    """
    for name in _MODULES:
        _name(name)
    inner = RuntimeError()
    for wrapper in (_name("UserExceptionWithTraceback")(inner, ""), _name("WorkerHealthCheckFailedError")("", inner)):
        if wrapped_error(wrapper) is not inner:
            raise ImportError(_missing(f"the wrapped error of {type(wrapper).__name__}"))
    if not hasattr(ray.train.ScalingConfig, "_resources_per_worker_not_none"):
        raise ImportError(_missing("ray.train.ScalingConfig._resources_per_worker_not_none"))


def _name(name: str) -> Any:
    """Import late: Ray Data and Ray Train take seconds, and light processes need neither."""
    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(_missing(f"{_MODULES[name]}.{name}")) from error


def _missing(what: str) -> str:
    return (
        f"Ray {ray.__version__} lacks {what}, which ray_estimator needs. Install a release that has it, such as 2.60."
    )


# Ray's control service


def put_value(key: bytes, value: bytes) -> None:
    """Store a value under a key that every process of the cluster can read. A missing name fails at import."""
    _internal_kv_put(key, value)


def pop_value(key: bytes) -> bytes | None:
    """Return and remove the value of a key; None if there is none. A missing name fails at import."""
    value: bytes | None = _internal_kv_get(key)
    _internal_kv_del(key)
    return value


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that Ray is draining.

    Raises:
        Exception: Of any type, if the name is missing or the control service does not answer. Callers log it.
    """
    return set(ray._private.state.state.get_draining_nodes())


# Processes and tasks


def is_ray_process(title: bytes) -> bool:
    """Return whether a process title is that of a Ray worker. `gpu_reclaim` logs a warning if titles have changed."""
    return title.startswith(_TITLE)


def is_idle_process(title: bytes) -> bool:
    """Return whether a process title is that of a Ray worker that runs no task."""
    return title.startswith(_name("WORKER_PROCESS_TYPE_IDLE_WORKER").encode())


def streaming_options(max_pending_results: int) -> dict[str, Any]:
    """Return the options of a task that yields its results and pauses when so many are not consumed.

    Ray rejects an option that it does not know when the task is submitted.
    """
    return {"num_returns": "streaming", "_generator_backpressure_num_objects": max_pending_results}


# Ray Train


def train_settings(start_timeout_secs: float | None) -> dict[str, str]:
    """Return the environment variables that Ray Train reads on the driver when a fit starts.

    Args:
        start_timeout_secs: Limit for starting a worker group. None: no limit.
    """
    return {
        _name("HEALTH_CHECK_INTERVAL_S_ENV_VAR"): "0.25",
        _name("WORKER_GROUP_START_TIMEOUT_S_ENV_VAR"): str(start_timeout_secs or 10**9),
        # Ray's watcher restarts a group only at the deadline of a preemption notice; `LeavingNodes` moves it at once.
        _name("ENABLE_PREEMPTION_WATCHER_ENV_VAR"): "0",
        _name("METRICS_ENABLED_ENV_VAR"): "0",
        # The patch prints the output of workers twice.
        _name("ENABLE_PRINT_PATCH_ENV_VAR"): "0",
    }


def worker_resources(scaling_config: Any) -> dict[str, float]:
    """Return the resources of one worker, with Ray Train's defaults filled in."""
    return dict(scaling_config._resources_per_worker_not_none)


def wrapped_error(error: BaseException) -> BaseException | None:
    """Return the error that Ray Train has wrapped in `error`; None if `error` is no wrapper."""
    attributes = ("_base_exc", "health_check_failure", "controller_failure")
    return next((inner for name in attributes if (inner := getattr(error, name, None)) is not None), None)


def start_timed_out(error: BaseException) -> bool:
    """Return whether a worker group could not be scheduled within the start timeout."""
    return isinstance(wrapped_error(error), _name("WorkerGroupStartupTimeoutError"))


def start_failed(error: BaseException | None) -> bool:
    """Return whether a worker died while its group was starting. Ray Train does not count that as a worker failure."""
    return error is not None and isinstance(wrapped_error(error), _name("WorkerGroupStartupFailedError"))


# Ray Data


def execution_callback() -> type:
    """Return the base class of callbacks for `add_execution_callback`."""
    callback: type = _name("ExecutionCallback")
    return callback


def add_execution_callback(dataset: Any, callback: type) -> None:
    """Call back when the dataset is executed."""
    dataset.context.custom_execution_callback_classes.append(callback)


def copied(dataset: Any) -> Any:
    """Return a copy of a dataset with its own context. A missing parameter fails when the dataset is first read."""
    from ray.data import Dataset

    return Dataset.copy(dataset, _deep_copy=True)


def blocks_in_memory(dataset: Any) -> Sequence[Any] | None:
    """Return the bundles of a dataset that is in memory; None if it has to be executed.

    A missing attribute fails when the dataset is first read.
    """
    plan = dataset._logical_plan.dag
    bundles: Sequence[Any] | None = plan.output_data() if isinstance(plan, _name("SourceOperator")) else None
    return bundles


def operators(dataset: Any) -> list[Any]:
    """Return the operators of a dataset's plan, sources first. A missing attribute fails when training starts."""

    def sources_first(operator: Any) -> Iterator[Any]:
        for source in operator.input_dependencies:
            yield from sources_first(source)
        yield operator

    return list(sources_first(dataset._logical_plan.dag))


def files_read(operator: Any) -> tuple[list[str], Any]:
    """Return the paths that an operator reads, and their filesystem.

    Empty and None where it reads no files, and, with a warning, where its datasource has files but does not name them.
    """
    source = getattr(operator, "datasource", operator)
    paths = getattr(source, "paths", None) or getattr(source, "_source_paths", None) or []
    filesystem = getattr(source, "filesystem", None) or getattr(source, "_filesystem", None)
    if not (paths and filesystem) and _reads_files(source):
        logger.warning(
            "Ray %s does not name the files of %s: a changed file is not noticed when training resumes.",
            ray.__version__,
            type(source).__name__,
        )
    return ([paths] if isinstance(paths, str) else [str(path) for path in paths]), filesystem


def _reads_files(source: Any) -> bool:
    from ray.data.datasource import FileBasedDatasource

    return isinstance(source, FileBasedDatasource) or type(source).__name__ == "ParquetDatasource"


def unfinished_operators(executor: Any) -> list[tuple[str, int]]:
    """Return the name and the number of active tasks of each operator of an execution that is not done.

    Empty, with a warning, if a name is missing: only an error message loses them.
    """
    try:
        return [(op.name, op.num_active_tasks()) for op in executor._topology if not op.has_completed()]
    except AttributeError as error:
        logger.warning("Ray %s does not say which operators of a Dataset are unfinished: %s", ray.__version__, error)
        return []


def hide_progress_bar_notice() -> None:
    """Hide Ray Data's notice that progress bars are disabled. If Ray renames its key, the notice appears again."""
    log_once("ray_data_progress_manager_disabled")
