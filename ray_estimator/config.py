"""`RunConfig`: how an Estimator runs, in tf.estimator's words and in Ray's.

Importing this module imports neither TensorFlow nor Ray.
"""

from __future__ import annotations

import copy
import dataclasses
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from ray_estimator._process.quiet import leave_out_local_mode_notice

if TYPE_CHECKING:
    from ray.train import FailureConfig, ScalingConfig

leave_out_local_mode_notice()  # Before anybody makes a ScalingConfig.

_UNSET: Any = type("Unset", (), {"__repr__": lambda self: "<600 s, or the other of the two>"})()
_DEFAULT_SAVE_SECS = 600
_DEFAULT_MAX_FAILURES = 3


@dataclass(frozen=True)
class _Place:
    """Where in the cluster a copy of the config is. `addresses` is empty where there is no cluster."""

    rank: int = 0
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class RunConfig:
    """How an Estimator runs: checkpoints, summaries, workers, deadlines. Attributes are read-only.

    The arguments up to `checkpoint_save_graph_def` are tf.estimator's, in its order, with its defaults; ours
    follow and are keyword-only. The driver, every worker and every task see the same values; `is_chief`,
    `task_id`, `num_worker_replicas`, `cluster_spec` and the like tell on a worker which one it is, and on the
    driver what a single worker would see. The variable TF_CONFIG is not read.

    Args:
        model_dir: Where checkpoints, events and exports go: any path or fsspec URL.
        tf_random_seed: The seed of each graph. None: another one each time.
        save_summary_steps: Steps between two writes of summaries. 0 or None: no summaries.
        save_checkpoints_steps: Steps between two checkpoints. Not together with `save_checkpoints_secs`.
        save_checkpoints_secs: Seconds between two checkpoints; 600 if neither of the two is given. If both
            are None or 0, there are no checkpoints.
        session_config: A `tf.compat.v1.ConfigProto`. None: see `resolved_session_config`.
        keep_checkpoint_max: How many of the newest checkpoints to keep. 0 or None: all.
        keep_checkpoint_every_n_hours: Keeps one checkpoint more for each such period.
        log_step_count_steps: Steps between two log lines of loss and of global_step/sec. None: no such lines.
        train_distribute: Must be None: the number of workers is `scaling_config`'s.
        device_fn: Must be None: each worker has one device, chosen by `scaling_config`.
        protocol: None, 'grpc' or 'grpc+verbs'. Workers talk gRPC whatever it says.
        eval_distribute: Must be None, as `train_distribute`.
        experimental_distribute: Must be None, as `train_distribute`.
        experimental_max_worker_delay_secs: Accepted for tf.estimator's sake, without effect: workers start together.
        session_creation_timeout_secs: Accepted for tf.estimator's sake, without effect: no worker waits for another to
            initialise the variables. See `start_timeout_secs` and `step_timeout_secs`.
        checkpoint_save_graph_def: Whether graph.pbtxt and a .meta file are written with checkpoints.
        scaling_config: A `ray.train.ScalingConfig`: how many workers, and what each one gets. None: one
            worker. `num_workers=0` runs everything in the caller's process.
        failure_config: A `ray.train.FailureConfig`: how many worker deaths a run survives. None: 3.
        worker_runtime_env: Ray's runtime_env of the workers, for example `{"py_modules": ["my_models"]}`, or
            `{"env_vars": {"TF_CPP_MIN_LOG_LEVEL": "0"}}` for all that TensorFlow says there.
        storage_options: fsspec's options for `model_dir`, for example credentials. Not shown by `repr`.
        legacy_keras: Whether workers run tf_keras, which `tf.compat.v1.layers` needs.
        start_timeout_secs: Seconds that workers, or a task, may take to find a place in the cluster and start.
            None: for ever.
        step_timeout_secs: Seconds that one step (or one save) may take; in tasks of evaluate and predict one batch, and
            once building the graph with restoring the checkpoint. There `input_timeout_secs` counts besides if a Ray
            Dataset is read. None: for ever.
        input_timeout_secs: Seconds to wait for the next block of a Ray Dataset, in every verb. None: for ever.
        stop_timeout_secs: Seconds that training may take to end its step and publish a checkpoint when Ctrl-C or
            SIGTERM stops it; then its workers are ended. None: as long as it takes.
        task_resources: Ray resources of one evaluate or predict task, for example `{"CPU": 2, "GPU": 1}`. Processes of
            tasks stay warm, with their GPU memory; those that are idle end before training on GPUs starts.
        max_tasks_in_flight: How many evaluate or predict tasks run at a time. None: as many as fit.
        predict_batch_size: Rows that predict gives to the model at a time. None: the input's batch size.
        progress: Whether the driver shows how training goes on, and a line at the end of each verb, on standard error
            or in the notebook.

    Raises:
        ValueError: A value is out of range, two exclude each other, or one is not supported here.
        TypeError: A value is of the wrong type.
    """

    model_dir: str | os.PathLike[str] | None = None
    tf_random_seed: int | None = None
    save_summary_steps: int | None = 100
    save_checkpoints_steps: int | None = _UNSET
    save_checkpoints_secs: float | None = _UNSET
    session_config: Any = None
    keep_checkpoint_max: int | None = 5
    keep_checkpoint_every_n_hours: float | None = 10000
    log_step_count_steps: int | None = 100
    train_distribute: None = None
    device_fn: None = None
    protocol: str | None = None
    eval_distribute: None = None
    experimental_distribute: None = None
    experimental_max_worker_delay_secs: float | None = None
    session_creation_timeout_secs: float | None = 7200
    checkpoint_save_graph_def: bool = True
    _: KW_ONLY
    scaling_config: ScalingConfig | None = None
    failure_config: FailureConfig | None = None
    worker_runtime_env: dict[str, Any] | None = None
    storage_options: dict[str, Any] | None = None
    legacy_keras: bool = False
    start_timeout_secs: float | None = 900
    step_timeout_secs: float | None = 600
    input_timeout_secs: float | None = 600
    stop_timeout_secs: float | None = 60
    task_resources: dict[str, float] | None = None
    max_tasks_in_flight: int | None = None
    predict_batch_size: int | None = None
    progress: bool = True
    _place: _Place = _Place()

    def __post_init__(self) -> None:
        """Fill in the defaults that hang on each other, take copies of mappings, and check."""
        steps, secs = self.save_checkpoints_steps, self.save_checkpoints_secs
        if steps is _UNSET and secs is _UNSET:
            secs = _DEFAULT_SAVE_SECS
        self._set("save_checkpoints_steps", None if steps is _UNSET else steps)
        self._set("save_checkpoints_secs", None if secs is _UNSET else secs)
        self._settle()

    def replace(self, **changes: Any) -> RunConfig:
        """Return a copy with some arguments of the constructor changed, checked as a new one is.

        Setting one of `save_checkpoints_steps` and `save_checkpoints_secs` makes the other None.

        Raises:
            ValueError: There is no such argument, or as the constructor raises it.
            TypeError: As the constructor raises it.
        """
        for name in changes:
            if name not in _ARGUMENTS:
                raise ValueError(f"Replacing {name} is not supported. Allowed properties are {list(_ARGUMENTS)}.")
        for name, other in (_SAVE_ARGUMENTS, _SAVE_ARGUMENTS[::-1]):
            if changes.get(name) is not None:
                changes = {other: None, **changes}
        return dataclasses.replace(self, **changes)

    def for_worker(self, rank: int, addresses: Sequence[str]) -> RunConfig:
        """Return the config as one worker sees it: `is_chief`, `task_id`, `cluster_spec` are that worker's.

        Args:
            rank: The worker's rank, from 0; rank 0 is the chief.
            addresses: `host:port` of every worker, in rank order. Empty where there is no cluster: in
                process, in tasks, and on the driver.

        Raises:
            ValueError: There is no address for this rank.
        """
        if not 0 <= rank < max(len(addresses), 1):
            raise ValueError(f"rank must be at least 0 and below {max(len(addresses), 1)}, given: {rank}.")
        return dataclasses.replace(self, _place=_Place(rank, tuple(addresses)))

    def resolved_session_config(self) -> Any:
        """Return a copy of `session_config`, or the default `ConfigProto`.

        The default places ops softly and lets the graph optimizer pass once. Imports TensorFlow.
        """
        import tensorflow as tf

        config = tf.compat.v1.ConfigProto()
        if self.session_config is not None:
            config.CopyFrom(self.session_config)
            return config
        config.allow_soft_placement = True
        rewrites = config.graph_options.rewrite_options
        rewrites.meta_optimizer_iterations = type(rewrites).ONE
        return config

    @property
    def num_workers(self) -> int:
        """How many workers train; 0 is the in-process mode."""
        return 1 if self.scaling_config is None else int(self.scaling_config.num_workers)

    @property
    def max_failures(self) -> int:
        """How many worker deaths a training run survives; -1 is any number."""
        return _DEFAULT_MAX_FAILURES if self.failure_config is None else int(self.failure_config.max_failures)

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that publishes checkpoints and writes events."""
        return self._place.rank == 0

    @property
    def task_type(self) -> str:
        """Always 'worker': the chief is the worker of rank 0."""
        return "worker"

    @property
    def task_id(self) -> int:
        """The worker's rank, from 0."""
        return self._place.rank

    @property
    def global_id_in_cluster(self) -> int:
        """The worker's rank: there are no tasks of other types to count."""
        return self._place.rank

    @property
    def num_worker_replicas(self) -> int:
        """How many workers are in this worker's cluster; 1 without a cluster."""
        return max(len(self._place.addresses), 1)

    @property
    def num_ps_replicas(self) -> int:
        """Always 0: there are no parameter servers."""
        return 0

    @property
    def cluster_spec(self) -> Any:
        """The `tf.train.ClusterSpec` of several workers, empty for one alone. Imports TensorFlow."""
        import tensorflow as tf

        return tf.train.ClusterSpec({"worker": list(self._place.addresses)} if self.num_worker_replicas > 1 else {})

    @property
    def master(self) -> str:
        """The worker's own TensorFlow server, one of several: ``grpc://host:port``. Empty for one alone."""
        return f"grpc://{self._place.addresses[self._place.rank]}" if self.num_worker_replicas > 1 else ""

    @property
    def evaluation_master(self) -> str:
        """Always empty: evaluation is no part of the training cluster."""
        return ""

    @property
    def service(self) -> None:
        """Always None, there is no TF_CONFIG to hold one."""
        return

    def __repr__(self) -> str:
        """Show what differs from the defaults; of secrets, only the names."""
        default = RunConfig()
        shown = [
            f"{name}={_masked(name, getattr(self, name))!r}"
            for name in _ARGUMENTS
            if getattr(self, name) != getattr(default, name)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _settle(self) -> None:
        """Bring the arguments into their final form, and check them."""
        if isinstance(self.model_dir, os.PathLike):
            self._set("model_dir", os.fspath(self.model_dir))
        for name in ("worker_runtime_env", "storage_options", "task_resources"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise TypeError(f"{name} must be a dict or None, given: {value!r}.")
            self._set(name, copy.copy(value))
        _check_tf_estimator_arguments(self)
        _check_scaling(self.scaling_config)
        _check_failures(self.failure_config)
        _check_our_numbers(self)


_ARGUMENTS = tuple(field.name for field in dataclasses.fields(RunConfig) if not field.name.startswith("_"))
_SAVE_ARGUMENTS = ("save_checkpoints_steps", "save_checkpoints_secs")


def _check_tf_estimator_arguments(config: RunConfig) -> None:
    _check_model_dir(config.model_dir)
    for name in ("train_distribute", "eval_distribute", "experimental_distribute", "device_fn"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"{name} must be None, given: {getattr(config, name)!r}. Workers and their devices are Ray's: use "
                "scaling_config=ray.train.ScalingConfig(num_workers=..., use_gpu=...)."
            )
    if config.save_checkpoints_steps is not None and config.save_checkpoints_secs is not None:
        raise ValueError(
            "`save_checkpoints_steps` and `save_checkpoints_secs` cannot be both set, given: "
            f"{config.save_checkpoints_steps!r} and {config.save_checkpoints_secs!r}. Keep one of them."
        )
    seed = config.tf_random_seed
    if seed is not None and not _is_integer(seed):
        raise ValueError(f"tf_random_seed must be integer, given: {seed!r}.")
    if config.protocol not in (None, "grpc", "grpc+verbs"):
        raise ValueError(f"protocol should be None, 'grpc' or 'grpc+verbs', given: {config.protocol!r}.")
    _check_session_config(config.session_config)
    for name in ("save_summary_steps", "save_checkpoints_steps", "save_checkpoints_secs", "keep_checkpoint_max"):
        _check_number(name, getattr(config, name), zero_allowed=True)
    _check_number("experimental_max_worker_delay_secs", config.experimental_max_worker_delay_secs, zero_allowed=True)
    for name in ("keep_checkpoint_every_n_hours", "log_step_count_steps", "session_creation_timeout_secs"):
        _check_number(name, getattr(config, name))
    _check_bool("checkpoint_save_graph_def", config.checkpoint_save_graph_def)


def _check_our_numbers(config: RunConfig) -> None:
    for name in ("start_timeout_secs", "step_timeout_secs", "input_timeout_secs", "stop_timeout_secs"):
        _check_number(name, getattr(config, name), none_means="no deadline")
    for name in ("max_tasks_in_flight", "predict_batch_size"):
        value = getattr(config, name)
        _check_number(name, value)
        if value is not None and not _is_integer(value):
            raise TypeError(f"{name} must be an int or None, given: {value!r}.")
    for resource, amount in (config.task_resources or {}).items():
        if not isinstance(resource, str):
            raise TypeError(f"task_resources must have names of resources as keys, given: {resource!r}.")
        if amount is None:
            raise TypeError(f"task_resources[{resource!r}] must be a number, given: None.")
        _check_number(f"task_resources[{resource!r}]", amount, zero_allowed=True)
    _check_bool("legacy_keras", config.legacy_keras)
    _check_bool("progress", config.progress)


def _check_model_dir(model_dir: Any) -> None:
    if model_dir is not None and not isinstance(model_dir, str):
        raise TypeError(f"model_dir must be a str, a path or None, given: {model_dir!r}.")
    if model_dir == "":
        raise ValueError("model_dir should be non-empty: a path, an fsspec URL, or None, given: ''.")


def _check_session_config(session_config: Any) -> None:
    if session_config is None:
        return
    import tensorflow as tf

    if not isinstance(session_config, tf.compat.v1.ConfigProto):
        raise ValueError(
            f"session_config must be instance of ConfigProto (tf.compat.v1.ConfigProto), given: {session_config!r}."
        )


def _check_scaling(scaling_config: Any) -> None:
    if scaling_config is None:
        return
    from ray.train import ScalingConfig

    if not isinstance(scaling_config, ScalingConfig):
        raise TypeError(f"scaling_config must be a ray.train.ScalingConfig or None, given: {scaling_config!r}.")
    workers = scaling_config.num_workers
    if isinstance(workers, tuple):
        raise ValueError(
            f"scaling_config must have a fixed number of workers, given: num_workers={workers}. "
            f"Use ScalingConfig(num_workers={workers[1]})."
        )
    if scaling_config.use_tpu:
        raise ValueError("scaling_config.use_tpu must be False: TPUs are not supported. Use CPUs or use_gpu=True.")
    gpus = scaling_config.num_gpus_per_worker
    if gpus > 1:
        raise ValueError(
            f"scaling_config must give each worker at most one GPU, given: {gpus:g} in resources_per_worker. "
            f"Raise num_workers instead, here to ScalingConfig(num_workers={workers * gpus:g}, use_gpu=True)."
        )


def _check_failures(failure_config: Any) -> None:
    if failure_config is None:
        return
    from ray.train import FailureConfig

    if not isinstance(failure_config, FailureConfig):
        raise TypeError(f"failure_config must be a ray.train.FailureConfig or None, given: {failure_config!r}.")
    if failure_config.max_failures < -1:
        raise ValueError(
            f"failure_config.max_failures should be >= 0, or -1 for any number, given: {failure_config.max_failures!r}."
        )


def _check_number(name: str, value: Any, *, zero_allowed: bool = False, none_means: str = "") -> None:
    if value is None:
        return
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number{_or_none(none_means)}, given: {value!r}.")
    if not (float(value) >= 0 if zero_allowed else float(value) > 0):
        raise ValueError(
            f"{name} should be {'>= 0' if zero_allowed else '> 0'}{_or_none(none_means)}, given: {value!r}."
        )


def _or_none(none_means: str) -> str:
    return f" or None for {none_means}" if none_means else ""


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, given: {value!r}.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _masked(name: str, value: Any) -> Any:
    """Return the value as `repr` may show it: credentials live in storage options and in env_vars."""
    if name == "storage_options" and value:
        return dict.fromkeys(value, "***")
    if name == "worker_runtime_env" and value and value.get("env_vars"):
        return {**value, "env_vars": dict.fromkeys(value["env_vars"], "***")}
    return value
