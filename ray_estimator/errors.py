"""The package's own errors.

    RayEstimatorError
    ├── EstimatorNotTrainedError (ValueError)   no checkpoint to evaluate, predict or export
    ├── CheckpointNotFoundError (ValueError)    a checkpoint does not exist
    │   └── CheckpointDamagedError              … or is damaged
    ├── InputChangedError (ValueError)          the input to resume from has changed
    ├── ShippingError (TypeError)               user code cannot be serialized and sent to the workers
    │   └── ModuleNotShippedError               … because they cannot import one of its modules
    ├── TaskLostError (RuntimeError)            the worker of a task died in every attempt
    ├── TaskTimeoutError (RuntimeError)         a task made no progress in every attempt
    └── TrainingError (RuntimeError)            training cannot continue
        ├── ModelDirInUseError                  another driver trains in model_dir
        ├── ModelDirAccessError                 model_dir cannot be accessed where the run needs it
        ├── WriterFencedError                   another writer has taken over the lease of model_dir
        ├── ResourcesTimeoutError               not enough cluster resources for the workers or a task
        ├── StepTimeoutError                    a step hangs
        ├── InputTimeoutError                   the input returned no data in time
        ├── InputEndedError                     tensors without a tf.data.Dataset ended on one of several workers
        ├── RanksDisagreeError                  the workers built different graphs
        └── WorkersLostError                    more worker failures than `failure_config` allows

Errors of user code (model_fn, input_fn, hooks, map_fn) are raised on the driver with their own type and a note that
holds the worker's traceback. So is TensorFlow's `NanLossDuringTrainingError`. Invalid arguments raise `ValueError` and
`TypeError`.

Each class passes the arguments of its constructor to `super().__init__`, so that it can be pickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime


class RayEstimatorError(Exception):
    """Base class of the package's own errors."""


class EstimatorNotTrainedError(RayEstimatorError, ValueError):
    """There is no trained model in model_dir.

    Attributes:
        model_dir: The directory.
    """

    def __init__(self, model_dir: str) -> None:
        super().__init__(model_dir)
        self.model_dir = model_dir

    def __str__(self) -> str:
        return (
            f"Could not find trained model in model_dir: {self.model_dir}. Call train() first, or pass "
            "allow_untrained=True to evaluate or predict with initial weights."
        )


class CheckpointNotFoundError(RayEstimatorError, ValueError):
    """The requested checkpoint does not exist or is damaged.

    Attributes:
        checkpoint_path: The requested path.
        reason: What is wrong.
    """

    def __init__(self, checkpoint_path: str, reason: str) -> None:
        super().__init__(checkpoint_path, reason)
        self.checkpoint_path = checkpoint_path
        self.reason = reason

    def __str__(self) -> str:
        return f"Could not use checkpoint_path {self.checkpoint_path}: {self.reason}"


class CheckpointDamagedError(CheckpointNotFoundError):
    """Files of the checkpoint are missing or differ from what was written.

    It is raised only for a checkpoint that is requested by path. Otherwise the checkpoint before is used, with a
    warning.
    """


class InputChangedError(RayEstimatorError, ValueError):
    """Training resumes after an interrupted run, and its input differs from the one that the run had read.

    Attributes:
        rows: Number of rows that the run had consumed.
        changes: Differences by name: the value before, and the value now.
    """

    def __init__(self, rows: int, changes: Mapping[str, tuple[str, str]]) -> None:
        super().__init__(rows, changes)
        self.rows = rows
        self.changes = changes

    def __str__(self) -> str:
        changes = "; ".join(f"{name}: was {before}, is {now}" for name, (before, now) in self.changes.items())
        return (
            f"The last training run was interrupted after {self.rows:,} rows of its input, and the input has changed "
            f"since ({changes}). Pass the original input to resume exactly, or use "
            "dataset_input_fn(..., resume='restart') to start from its first row, or "
            f"resume='rows' to skip its first {self.rows:,} rows."
        )


class ShippingError(RayEstimatorError, TypeError):
    """User code cannot be serialized and sent to the workers.

    Attributes:
        what: The argument that holds it, for example ``hooks[0]``.
        reason: What cannot be serialized, and how to fix it.
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what, reason)
        self.what = what
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.what} cannot be serialized and sent to the workers: {self.reason}"


class ModuleNotShippedError(ShippingError):
    """User code needs a module that the workers cannot import.

    Attributes:
        what: The argument that needs it, for example ``model_fn``.
        module: The module's name.
    """

    def __init__(self, what: str, module: str) -> None:
        super().__init__(what, module)
        self.module = module

    def __str__(self) -> str:
        root = self.module.partition(".")[0]
        return (
            f"{self.what} needs the module {self.module!r}, which the workers cannot import. Ship it with "
            f'ray.init(runtime_env={{"working_dir": "."}}) or RunConfig(worker_runtime_env={{"py_modules": [...]}}), '
            f"or send it by value: call ray.cloudpickle.register_pickle_by_value({root}) before train()."
        )


class TaskLostError(RayEstimatorError, RuntimeError):
    """The worker of a task of evaluate, predict or an export died in every attempt.

    Attributes:
        what: Description of the task, with its range of rows if it has one.
        tries: Number of attempts.
        last: Ray's error for the last failure.
    """

    def __init__(self, what: str, tries: int, last: str) -> None:
        super().__init__(what, tries, last)
        self.what = what
        self.tries = tries
        self.last = last

    def __str__(self) -> str:
        return (
            f"{self.what} lost its worker {self.tries} times, last with {self.last}. If it needs more memory, set "
            'RunConfig(task_resources={"memory": ...}), in bytes, or use a smaller batch. Otherwise see the log of the '
            "dead worker, which is on its node in Ray's session directory: these rows may crash the model."
        )


class TaskTimeoutError(RayEstimatorError, RuntimeError):
    """A task of evaluate or predict made no progress in every attempt. A note holds its stack trace.

    Attributes:
        what: Description of the task, with its range of rows if it has one.
        tries: Number of attempts.
        timeout_secs: How long it ran without a batch.
    """

    def __init__(self, what: str, tries: int, timeout_secs: float) -> None:
        super().__init__(what, tries, timeout_secs)
        self.what = what
        self.tries = tries
        self.timeout_secs = timeout_secs

    def __str__(self) -> str:
        return (
            f"{self.what} made no progress for {self.timeout_secs:g} s and was killed ({self.tries} attempts). If a "
            "batch, or building the graph, may take this long, raise RunConfig(step_timeout_secs=...), and "
            "input_timeout_secs for a slow Ray Dataset. Otherwise see the attached stack trace."
        )


class TrainingError(RayEstimatorError, RuntimeError):
    """Training cannot continue."""


class ModelDirInUseError(TrainingError):
    """Another driver trains in model_dir, or another thread of this one.

    Attributes:
        model_dir: The directory.
        host: Host of the driver that trains there.
        pid: Its process id.
        since: When it started, in seconds since the epoch.
    """

    def __init__(self, model_dir: str, host: str, pid: int, since: int) -> None:
        super().__init__(model_dir, host, pid, since)
        self.model_dir = model_dir
        self.host = host
        self.pid = pid
        self.since = since

    def __str__(self) -> str:
        return (
            f"model_dir {self.model_dir} is in use: process {self.pid} on host {self.host} has trained there since "
            f"{datetime.fromtimestamp(self.since, UTC)}. Wait until it ends, stop it, or choose another model_dir."
        )


class ModelDirAccessError(TrainingError):
    """Files in model_dir cannot be written, read, listed or deleted where the run needs to.

    Attributes:
        model_dir: The directory.
        where: Description of the process that tried.
        reason: What failed, with the store's message.
    """

    def __init__(self, model_dir: str, where: str, reason: str) -> None:
        super().__init__(model_dir, where, reason)
        self.model_dir = model_dir
        self.where = where
        self.reason = reason

    @classmethod
    def not_shared(cls, model_dir: str, where: str) -> ModelDirAccessError:
        """Return the error for a model_dir that does not hold the driver's files."""
        reason = (
            "a file that the driver wrote there is not visible here, so this is a different directory. Use the URL of "
            "an object store, or a directory that all nodes share, and give workers the same environment variables."
        )
        return cls(model_dir, where, reason)

    def __str__(self) -> str:
        return f"model_dir {self.model_dir} cannot be used from {self.where}: {self.reason}"


class WriterFencedError(TrainingError):
    """Another writer has taken over the lease of model_dir, so this run may no longer write there.

    Attributes:
        model_dir: The directory.
        by: Description of the other writer.
    """

    def __init__(self, model_dir: str, by: str) -> None:
        super().__init__(model_dir, by)
        self.model_dir = model_dir
        self.by = by

    def __str__(self) -> str:
        return (
            f"This run can no longer write to model_dir {self.model_dir}: it missed its heartbeats, and the lease was "
            f"taken over by {self.by}. Checkpoints that it has published are kept."
        )


class ResourcesTimeoutError(TrainingError):
    """Workers, or a task, could not be scheduled within `start_timeout_secs`.

    Attributes:
        asked: Requested resources, a mapping for each worker.
        cluster: Total resources of the cluster.
        available: Free resources.
        timeout_secs: How long the run waited.
        argument: Argument of `RunConfig` with the request: "scaling_config", or "task_resources" for a task.
    """

    def __init__(
        self,
        asked: Sequence[Mapping[str, float]],
        cluster: Mapping[str, float],
        available: Mapping[str, float],
        timeout_secs: float,
        argument: str = "scaling_config",
    ) -> None:
        super().__init__(asked, cluster, available, timeout_secs, argument)
        self.asked = asked
        self.cluster = cluster
        self.available = available
        self.timeout_secs = timeout_secs
        self.argument = argument

    def __str__(self) -> str:
        each = dict(self.asked[0]) if self.asked else {}
        kind = "task" if self.argument == "task_resources" else "worker"
        return (
            f"{len(self.asked)} {kind}(s) of {each} could not be scheduled within "
            f"start_timeout_secs={self.timeout_secs:g}: the cluster has {dict(self.cluster)}, of which "
            f"{dict(self.available)} is free. Request less in RunConfig({self.argument}=...), free or add nodes, or "
            "raise start_timeout_secs."
        )


class StepTimeoutError(TrainingError):
    """A step did not end within `step_timeout_secs`.

    Attributes:
        step: Last global step that ended.
        timeout_secs: The timeout.
        waiting: Current activity of each rank that responds, by rank.
        silent: Seconds since the last heartbeat of each rank that does not respond, by rank.
    """

    def __init__(self, step: int, timeout_secs: float, waiting: Mapping[int, str], silent: Mapping[int, float]) -> None:
        super().__init__(step, timeout_secs, waiting, silent)
        self.step = step
        self.timeout_secs = timeout_secs
        self.waiting = waiting
        self.silent = silent

    def __str__(self) -> str:
        waiting = "; ".join(f"rank {rank}: {doing}" for rank, doing in sorted(self.waiting.items())) or "none"
        silent = "; ".join(f"rank {rank} for {secs:.0f} s" for rank, secs in sorted(self.silent.items())) or "none"
        return (
            f"No step ended within step_timeout_secs={self.timeout_secs:g} after global step {self.step}. "
            f"Waiting ranks: {waiting}. Ranks that do not respond: {silent}. If steps or saves may take this long, "
            "raise RunConfig(step_timeout_secs=...)."
        )


class InputTimeoutError(TrainingError):
    """The input returned no data within `input_timeout_secs`.

    Attributes:
        source: Description of the input.
        timeout_secs: The timeout.
    """

    def __init__(self, source: str, timeout_secs: float) -> None:
        super().__init__(source, timeout_secs)
        self.source = source
        self.timeout_secs = timeout_secs

    def __str__(self) -> str:
        return (
            f"{self.source} returned no data within input_timeout_secs={self.timeout_secs:g}. If Ray Data lacks CPUs, "
            "lower resources_per_worker. If its source is slow, raise RunConfig(input_timeout_secs=...)."
        )


class InputEndedError(TrainingError):
    """The input ended on one of several workers, and its input_fn returns tensors, so the others could not stop.

    Attributes:
        rank: Rank of the worker whose input ended.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rank = rank

    def __str__(self) -> str:
        return (
            f"The input of rank {self.rank} ended, and input_fn returns tensors. With several workers, return the "
            "tf.data.Dataset itself, so that all workers stop at the same step, or repeat the input indefinitely and "
            "pass steps or max_steps."
        )


class RanksDisagreeError(TrainingError):
    """The workers built different graphs.

    Attributes:
        difference: Description of the first difference.
    """

    def __init__(self, difference: str) -> None:
        super().__init__(difference)
        self.difference = difference

    def __str__(self) -> str:
        return (
            f"The workers built different graphs: {self.difference}. model_fn must build the same variables and "
            "losses on every worker. It must not depend on the rank, the clock or random numbers."
        )


class WorkersLostError(TrainingError):
    """More workers failed than `failure_config` allows.

    Attributes:
        max_failures: Number of failures allowed.
        last: Description of the last failure.
    """

    def __init__(self, max_failures: int, last: str) -> None:
        super().__init__(max_failures, last)
        self.max_failures = max_failures
        self.last = last

    def __str__(self) -> str:
        return (
            f"Workers failed more often than failure_config.max_failures={self.max_failures} allows. Last failure: "
            f"{self.last}. Call train again with the same model_dir to resume from its newest checkpoint."
        )
