"""`RunConfig`: the configuration of an Estimator, with the arguments of tf.estimator and those for Ray.

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

from ray_estimator._numbers import check_number
from ray_estimator._process.quiet import hide_local_mode_notice

if TYPE_CHECKING:
    from ray.train import FailureConfig, ScalingConfig

hide_local_mode_notice()  # before the first ScalingConfig is created

_UNSET: Any = type("Unset", (), {"__repr__": lambda self: "<600 s, unless the other one is set>"})()
_DEFAULT_SAVE_SECS = 600
_DEFAULT_MAX_FAILURES = 3

REFUSED_ARGUMENTS = ("train_distribute", "eval_distribute", "experimental_distribute", "device_fn")
"""Arguments of tf.estimator's RunConfig that must be None, because Ray places the workers."""


@dataclass(frozen=True)
class _Place:
    """The worker that a copy of the config belongs to. `addresses` is empty outside a training group."""

    rank: int = 0
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class RunConfig:
    """The configuration of an Estimator: checkpoints, summaries, workers, timeouts. Attributes are read-only.

    The arguments up to `checkpoint_save_graph_def` are those of tf.estimator, in its order and with its defaults. The
    others are keyword-only. The driver, every worker and every task have the same values. On a worker `is_chief`,
    `task_id`, `num_worker_replicas`, `cluster_spec` and similar properties describe that worker, elsewhere a single
    worker. The variable TF_CONFIG is not read.

    Args:
        model_dir: Directory of checkpoints, events and exports: any path or fsspec URL.
        tf_random_seed: Graph-level seed. None: nondeterministic.
        save_summary_steps: Steps between summaries. 0 or None: no summaries.
        save_checkpoints_steps: Steps between checkpoints. Excludes `save_checkpoints_secs`.
        save_checkpoints_secs: Seconds between checkpoints; 600 if neither of the two is set. If both are None or 0, no
            checkpoints are saved.
        session_config: A `tf.compat.v1.ConfigProto`. None: see `resolved_session_config`.
        keep_checkpoint_max: Number of newest checkpoints to keep. 0 or None: all.
        keep_checkpoint_every_n_hours: Period for each of which one more checkpoint is kept.
        log_step_count_steps: Steps between log lines with loss and global_step/sec. None: no such lines.
        train_distribute: Must be None: `scaling_config` sets the number of workers.
        device_fn: Must be None: each worker has one device, set by `scaling_config`.
        protocol: None, 'grpc' or 'grpc+verbs'. Workers use gRPC in any case.
        eval_distribute: Must be None, like `train_distribute`.
        experimental_distribute: Must be None, like `train_distribute`.
        experimental_max_worker_delay_secs: No effect, accepted for compatibility: workers start together.
        session_creation_timeout_secs: No effect, accepted for compatibility: no worker waits for another to initialize
            variables. See `start_timeout_secs` and `step_timeout_secs`.
        checkpoint_save_graph_def: Whether to write graph.pbtxt and .meta files with checkpoints.
        scaling_config: A `ray.train.ScalingConfig`: the number of workers and the resources of each. None: one
            worker. `num_workers=0` runs everything in the calling process.
        failure_config: A `ray.train.FailureConfig`: the number of worker failures that a run survives. None: 3.
        worker_runtime_env: Ray runtime_env of the workers, for example `{"py_modules": ["my_models"]}`, or
            `{"env_vars": {"TF_CPP_MIN_LOG_LEVEL": "0"}}` for all log messages of TensorFlow.
        storage_options: fsspec options for `model_dir`, for example credentials. Hidden by `repr`.
        legacy_keras: Whether workers use tf_keras, which `tf.compat.v1.layers` needs.
        start_timeout_secs: Seconds for workers, or a task, to be scheduled and start. None: no limit.
        step_timeout_secs: Seconds for one step or one save. In tasks of evaluate and predict: for one batch, and for
            building the graph and restoring the checkpoint; with a Ray Dataset `input_timeout_secs` is added. None: no
            limit.
        input_timeout_secs: Seconds to wait for the next block of a Ray Dataset. None: no limit.
        stop_timeout_secs: Seconds for training to end its step and publish a checkpoint when Ctrl-C or SIGTERM stops
            it. Then its workers are killed. None: no limit.
        task_resources: Ray resources of one evaluate or predict task, for example `{"CPU": 2, "GPU": 1}`. Processes of
            tasks stay alive with their GPU memory. Idle ones are ended before training on GPUs starts.
        max_tasks_in_flight: Number of evaluate or predict tasks to run concurrently. None: as many as fit.
        predict_batch_size: Batch size of the model in predict. None: that of the input.
        progress: Whether the driver shows the progress of training and a summary line after each call, on standard
            error or in the notebook.

    Raises:
        ValueError: A value is out of range or not supported, or two values exclude each other.
        TypeError: A value has the wrong type.
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
        """Set the defaults that depend on each other, copy mappings, and check all arguments."""
        steps, secs = self.save_checkpoints_steps, self.save_checkpoints_secs
        if steps is _UNSET and secs is _UNSET:
            secs = _DEFAULT_SAVE_SECS
        self._set("save_checkpoints_steps", None if steps is _UNSET else steps)
        self._set("save_checkpoints_secs", None if secs is _UNSET else secs)
        self._normalize()

    def replace(self, **changes: Any) -> RunConfig:
        """Return a copy with some constructor arguments changed and checked.

        Setting one of `save_checkpoints_steps` and `save_checkpoints_secs` makes the other None.

        Raises:
            ValueError: There is no such argument, or as in the constructor.
            TypeError: As in the constructor.
        """
        for name in changes:
            if name not in _ARGUMENTS:
                raise ValueError(f"Replacing {name} is not supported. Allowed properties are {list(_ARGUMENTS)}.")
        for name, other in (_SAVE_ARGUMENTS, _SAVE_ARGUMENTS[::-1]):
            if changes.get(name) is not None:
                changes = {other: None, **changes}
        return self._varied(**changes)

    def for_worker(self, rank: int, addresses: Sequence[str]) -> RunConfig:
        """Return the config of one worker, whose `is_chief`, `task_id` and `cluster_spec` describe that worker.

        Args:
            rank: Rank of the worker, from 0. Rank 0 is the chief.
            addresses: `host:port` of every worker, in rank order. Empty outside a training group: in process, in tasks,
                and on the driver.

        Raises:
            ValueError: There is no address for this rank.
        """
        if not 0 <= rank < max(len(addresses), 1):
            raise ValueError(f"rank must be at least 0 and below {max(len(addresses), 1)}, got {rank}.")
        return self._varied(_place=_Place(rank, tuple(addresses)))

    def _varied(self, **changes: Any) -> RunConfig:
        """Return a copy with some fields changed. A subclass keeps its attributes, whatever its constructor takes."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(RunConfig)}
        new = copy.copy(self)
        RunConfig.__init__(new, **{**fields, **changes})
        return new

    def resolved_session_config(self) -> Any:
        """Return a copy of `session_config`, or the default `ConfigProto`.

        The default allows soft placement and runs the graph optimizer once. Imports TensorFlow.
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
        """Number of training workers; 0 in process."""
        return 1 if self.scaling_config is None else int(self.scaling_config.num_workers)

    @property
    def max_failures(self) -> int:
        """Number of worker failures that a training run survives; -1 for any number."""
        return _DEFAULT_MAX_FAILURES if self.failure_config is None else int(self.failure_config.max_failures)

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that publishes checkpoints and writes events."""
        return self._place.rank == 0

    @property
    def task_type(self) -> str:
        """Always 'worker'. The chief is the worker with rank 0."""
        return "worker"

    @property
    def task_id(self) -> int:
        """The worker's rank, from 0."""
        return self._place.rank

    @property
    def global_id_in_cluster(self) -> int:
        """The worker's rank, because there are no tasks of other types."""
        return self._place.rank

    @property
    def num_worker_replicas(self) -> int:
        """Number of workers in the training group; 1 outside a group."""
        return max(len(self._place.addresses), 1)

    @property
    def num_ps_replicas(self) -> int:
        """Always 0: there are no parameter servers."""
        return 0

    @property
    def cluster_spec(self) -> Any:
        """The `tf.train.ClusterSpec` of the training group, empty for a single worker. Imports TensorFlow."""
        import tensorflow as tf

        return tf.train.ClusterSpec({"worker": list(self._place.addresses)} if self.num_worker_replicas > 1 else {})

    @property
    def master(self) -> str:
        """URL of the worker's TensorFlow server, ``grpc://host:port``. Empty for a single worker."""
        return f"grpc://{self._place.addresses[self._place.rank]}" if self.num_worker_replicas > 1 else ""

    @property
    def evaluation_master(self) -> str:
        """Always empty: evaluation is not part of the training cluster."""
        return ""

    @property
    def service(self) -> None:
        """Always None: TF_CONFIG is not used."""
        return

    def __repr__(self) -> str:
        """Show arguments that differ from the defaults, without secrets."""
        default = RunConfig()
        shown = [
            f"{name}={_masked(name, getattr(self, name))!r}"
            for name in _ARGUMENTS
            if getattr(self, name) != getattr(default, name)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _normalize(self) -> None:
        """Copy mappings and check all arguments."""
        if isinstance(self.model_dir, os.PathLike):
            self._set("model_dir", os.fspath(self.model_dir))
        for name in ("worker_runtime_env", "storage_options", "task_resources"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise TypeError(f"{name} must be a dict or None, got {value!r}.")
            self._set(name, copy.copy(value))
        _check_tf_estimator_arguments(self)
        _check_scaling(self.scaling_config)
        _check_failures(self.failure_config)
        _check_ray_arguments(self)


_ARGUMENTS = tuple(field.name for field in dataclasses.fields(RunConfig) if not field.name.startswith("_"))
_SAVE_ARGUMENTS = ("save_checkpoints_steps", "save_checkpoints_secs")


def _check_tf_estimator_arguments(config: RunConfig) -> None:
    _check_model_dir(config.model_dir)
    for name in REFUSED_ARGUMENTS:
        if getattr(config, name) is not None:
            raise ValueError(
                f"{name} must be None, got {getattr(config, name)!r}. Ray places the workers: use "
                "scaling_config=ray.train.ScalingConfig(num_workers=..., use_gpu=...)."
            )
    if config.save_checkpoints_steps is not None and config.save_checkpoints_secs is not None:
        raise ValueError(
            "`save_checkpoints_steps` and `save_checkpoints_secs` cannot be both set, got "
            f"{config.save_checkpoints_steps!r} and {config.save_checkpoints_secs!r}. Keep one of them."
        )
    seed = config.tf_random_seed
    if seed is not None and (not isinstance(seed, numbers.Integral) or isinstance(seed, bool)):
        raise ValueError(f"tf_random_seed must be integer, got {seed!r}.")
    if config.protocol not in (None, "grpc", "grpc+verbs"):
        raise ValueError(f"protocol should be None, 'grpc' or 'grpc+verbs', got {config.protocol!r}.")
    _check_session_config(config.session_config)
    for name in (
        "save_summary_steps",
        "save_checkpoints_steps",
        "save_checkpoints_secs",
        "keep_checkpoint_max",
        "experimental_max_worker_delay_secs",
    ):
        check_number(name, getattr(config, name), zero_allowed=True, or_none=" or None")
    for name in ("keep_checkpoint_every_n_hours", "log_step_count_steps", "session_creation_timeout_secs"):
        check_number(name, getattr(config, name), or_none=" or None")
    _check_bool("checkpoint_save_graph_def", config.checkpoint_save_graph_def)


def _check_ray_arguments(config: RunConfig) -> None:
    for name in ("start_timeout_secs", "step_timeout_secs", "input_timeout_secs", "stop_timeout_secs"):
        check_number(name, getattr(config, name), or_none=" or None for no deadline")
    for name in ("max_tasks_in_flight", "predict_batch_size"):
        check_number(name, getattr(config, name), integer=True, or_none=" or None")
    for resource, amount in (config.task_resources or {}).items():
        if not isinstance(resource, str):
            raise TypeError(f"task_resources must have resource names as keys, got {resource!r}.")
        check_number(f"task_resources[{resource!r}]", amount, zero_allowed=True)
    _check_bool("legacy_keras", config.legacy_keras)
    _check_bool("progress", config.progress)


def _check_model_dir(model_dir: Any) -> None:
    if model_dir is not None and not isinstance(model_dir, str):
        raise TypeError(f"model_dir must be a str, a path or None, got {model_dir!r}.")
    if model_dir == "":
        raise ValueError("model_dir should be non-empty: a path, an fsspec URL, or None, got ''.")


def _check_session_config(session_config: Any) -> None:
    if session_config is None:
        return
    import tensorflow as tf

    if not isinstance(session_config, tf.compat.v1.ConfigProto):
        raise ValueError(
            f"session_config must be instance of ConfigProto (tf.compat.v1.ConfigProto), got {session_config!r}."
        )


def _check_scaling(scaling_config: Any) -> None:
    if scaling_config is None:
        return
    from ray.train import ScalingConfig

    if not isinstance(scaling_config, ScalingConfig):
        raise TypeError(f"scaling_config must be a ray.train.ScalingConfig or None, got {scaling_config!r}.")
    workers = scaling_config.num_workers
    if isinstance(workers, tuple):
        raise ValueError(
            f"scaling_config must have a fixed number of workers, got num_workers={workers}. "
            f"Use ScalingConfig(num_workers={workers[1]})."
        )
    if scaling_config.use_tpu:
        raise ValueError("scaling_config.use_tpu must be False: TPUs are not supported. Use CPUs or use_gpu=True.")
    gpus = scaling_config.num_gpus_per_worker
    if gpus > 1:
        raise ValueError(
            f"scaling_config must give each worker at most one GPU, got {gpus:g} in resources_per_worker. "
            f"Raise num_workers instead, here to ScalingConfig(num_workers={workers * gpus:g}, use_gpu=True)."
        )


def _check_failures(failure_config: Any) -> None:
    if failure_config is None:
        return
    from ray.train import FailureConfig

    if not isinstance(failure_config, FailureConfig):
        raise TypeError(f"failure_config must be a ray.train.FailureConfig or None, got {failure_config!r}.")
    if failure_config.max_failures < -1:
        raise ValueError(
            f"failure_config.max_failures should be >= 0, or -1 for any number, got {failure_config.max_failures!r}."
        )


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


def _masked(name: str, value: Any) -> Any:
    """Return the value without credentials, which are in storage options and in env_vars."""
    if name == "storage_options" and value:
        return dict.fromkeys(value, "***")
    if name == "worker_runtime_env" and value and value.get("env_vars"):
        return {**value, "env_vars": dict.fromkeys(value["env_vars"], "***")}
    return value
