"""Every error that the package raises of its own accord.

    RayEstimatorError
    ├── EstimatorNotTrainedError (ValueError)   no checkpoint to evaluate, predict or export
    ├── CheckpointNotFoundError (ValueError)    a checkpoint is not there
    │   └── CheckpointDamagedError              … or not whole
    ├── InputChangedError (ValueError)          training is to go on with rows that are others now
    ├── ShippingError (TypeError)               user code that cannot travel to the workers
    │   └── ModuleNotShippedError               … because they cannot import one of its modules
    ├── TaskLostError (RuntimeError)            a task whose worker died each time it ran
    ├── TaskTimeoutError (RuntimeError)         a task that stood still each time it ran
    └── TrainingError (RuntimeError)            a training run that could not go on
        ├── ModelDirInUseError                  another driver trains in model_dir
        ├── ModelDirAccessError                 model_dir cannot be used from where the run needs it
        ├── WriterFencedError                   another writer has taken model_dir over
        ├── ResourcesTimeoutError               workers, or a task, found no place in the cluster
        ├── StepTimeoutError                    a step did not end: who waits, who is silent
        ├── InputTimeoutError                   the input gave no data in time
        ├── InputEndedError                     tensors without a tf.data.Dataset ended on one of several workers
        ├── RanksDisagreeError                  the workers built different graphs
        └── WorkersLostError                    more worker deaths than `failure_config` allows

Errors of the user's own code (model_fn, input_fn, hooks, map_fn) are not here: they reach the
driver as themselves, with a note that holds the worker's traceback. So does TensorFlow's
`NanLossDuringTrainingError`. Bad arguments are plain `ValueError` and `TypeError`.

Each class hands its constructor's arguments to `super().__init__`, so that it survives pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime


class RayEstimatorError(Exception):
    """Root of the package's own errors."""


class EstimatorNotTrainedError(RayEstimatorError, ValueError):
    """There is no trained model where one is needed.

    Attributes:
        model_dir: The directory searched.
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
    """A checkpoint that the caller named is not there, or not whole.

    Attributes:
        checkpoint_path: What the caller named.
        reason: What was found instead.
    """

    def __init__(self, checkpoint_path: str, reason: str) -> None:
        super().__init__(checkpoint_path, reason)
        self.checkpoint_path = checkpoint_path
        self.reason = reason

    def __str__(self) -> str:
        return f"Could not use checkpoint_path {self.checkpoint_path}: {self.reason}"


class CheckpointDamagedError(CheckpointNotFoundError):
    """A checkpoint lacks files, or they are not what was written.

    Whoever named no checkpoint gets the one before, which the log says; whoever named this one gets this error.
    """


class InputChangedError(RayEstimatorError, ValueError):
    """A training run was cut off, and the input that is to go on where it stopped is not the one that it had read.

    Attributes:
        rows: How many rows it had consumed.
        changes: What is different, by name: how it was, and how it is.
    """

    def __init__(self, rows: int, changes: Mapping[str, tuple[str, str]]) -> None:
        super().__init__(rows, changes)
        self.rows = rows
        self.changes = changes

    def __str__(self) -> str:
        changes = "; ".join(f"{name}: was {before}, is {now}" for name, (before, now) in self.changes.items())
        return (
            f"The last training run was cut off after {self.rows:,} rows of its input, and the input has changed "
            f"since ({changes}). Give the same input to go on with the next row; or choose: "
            "dataset_input_fn(..., resume='restart') reads the new one from its beginning, "
            f"resume='rows' passes over its first {self.rows:,} rows."
        )


class ShippingError(RayEstimatorError, TypeError):
    """User code that cannot be pickled, and so cannot travel to the workers.

    Attributes:
        what: The argument that holds it, for example ``hooks[0]``.
        reason: What stopped it, and the cure.
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what, reason)
        self.what = what
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.what} cannot travel to the workers: {self.reason}"


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
            f"{self.what} needs the module {self.module!r}, which the workers cannot import. Either ship it: "
            f'ray.init(runtime_env={{"working_dir": "."}}) (or RunConfig(worker_runtime_env={{"py_modules": [...]}})); '
            f"or send it by value: ray.cloudpickle.register_pickle_by_value({root}) before train()."
        )


class TaskLostError(RayEstimatorError, RuntimeError):
    """A task of evaluate, predict or an export whose worker died each time it ran.

    Attributes:
        what: The task in words, with its rows if it has some.
        tries: How often it was tried.
        last: What Ray says of the last death.
    """

    def __init__(self, what: str, tries: int, last: str) -> None:
        super().__init__(what, tries, last)
        self.what = what
        self.tries = tries
        self.last = last

    def __str__(self) -> str:
        return (
            f"{self.what} lost its worker {self.tries} times, the last time by {self.last}. If it needs more memory, "
            'ask for it: RunConfig(task_resources={"memory": ...}), in bytes; or use a smaller batch. Otherwise look '
            "at what these rows do to the model: the log of a dead worker is on its node, in Ray's session directory."
        )


class TaskTimeoutError(RayEstimatorError, RuntimeError):
    """A task of evaluate or predict that stood still each time it ran. A note holds the stack where it stood.

    Attributes:
        what: The task in words, with its rows if it has some.
        tries: How often it was tried.
        timeout_secs: How long it went on without a batch.
    """

    def __init__(self, what: str, tries: int, timeout_secs: float) -> None:
        super().__init__(what, tries, timeout_secs)
        self.what = what
        self.tries = tries
        self.timeout_secs = timeout_secs

    def __str__(self) -> str:
        return (
            f"{self.what} went on for {self.timeout_secs:g} s without a batch, {self.tries} times, and was ended. If a "
            "batch, or building the graph, may take this long, raise RunConfig(step_timeout_secs=...), and "
            "input_timeout_secs where a Ray Dataset is slow. Else look at where it stood."
        )


class TrainingError(RayEstimatorError, RuntimeError):
    """A training run that could not go on."""


class ModelDirInUseError(TrainingError):
    """Another driver trains in model_dir, or another thread of this one.

    Attributes:
        model_dir: The directory.
        host: The host of the driver that trains there.
        pid: Its process.
        since: Since when, in seconds since the epoch.
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
            f"{datetime.fromtimestamp(self.since, UTC)}. Wait until it ends, or end it, or choose another model_dir."
        )


class ModelDirAccessError(TrainingError):
    """Files of model_dir cannot be written, read, listed or deleted from where the run needs them.

    Attributes:
        model_dir: The directory.
        where: From where it was tried, in words.
        reason: What failed, and the store's own words.
    """

    def __init__(self, model_dir: str, where: str, reason: str) -> None:
        super().__init__(model_dir, where, reason)
        self.model_dir = model_dir
        self.where = where
        self.reason = reason

    @classmethod
    def not_shared(cls, model_dir: str, where: str) -> ModelDirAccessError:
        """What the driver wrote is not there."""
        reason = (
            "a file that the driver wrote there is not to be seen, so it is another directory. Choose the URL of an "
            "object store, or a directory that all nodes share, and give workers the same environment variables for it."
        )
        return cls(model_dir, where, reason)

    def __str__(self) -> str:
        return f"model_dir {self.model_dir} cannot be used from {self.where}: {self.reason}"


class WriterFencedError(TrainingError):
    """Another writer has taken model_dir over, so this run may not write there any more.

    Attributes:
        model_dir: The directory.
        by: The other writer, in words.
    """

    def __init__(self, model_dir: str, by: str) -> None:
        super().__init__(model_dir, by)
        self.model_dir = model_dir
        self.by = by

    def __str__(self) -> str:
        return (
            f"This run no longer writes in model_dir {self.model_dir}: it gave no sign of life for too long, and was "
            f"taken over by {self.by}. What it had published is kept."
        )


class ResourcesTimeoutError(TrainingError):
    """Workers, or a task, found no place in the cluster within `start_timeout_secs`.

    Attributes:
        asked: Resources asked for, a mapping for each worker.
        cluster: Resources of the cluster, in total.
        available: Resources that were free.
        timeout_secs: How long the run waited.
        argument: The argument of `RunConfig` that asks: "scaling_config", or "task_resources" of a task.
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
        who = "task" if self.argument == "task_resources" else "worker"
        return (
            f"{len(self.asked)} {who}(s) of {each} found no place within start_timeout_secs={self.timeout_secs:g}: "
            f"the cluster has {dict(self.cluster)}, of which {dict(self.available)} is free. Ask for less in "
            f"RunConfig({self.argument}=...), free or add nodes, or raise start_timeout_secs."
        )


class StepTimeoutError(TrainingError):
    """A step did not end within `step_timeout_secs`.

    Attributes:
        step: The last global step that ended.
        timeout_secs: The deadline.
        waiting: What each rank that answers was doing, by rank.
        silent: Seconds since the last sign of life of each rank that does not answer, by rank.
    """

    def __init__(self, step: int, timeout_secs: float, waiting: Mapping[int, str], silent: Mapping[int, float]) -> None:
        super().__init__(step, timeout_secs, waiting, silent)
        self.step = step
        self.timeout_secs = timeout_secs
        self.waiting = waiting
        self.silent = silent

    def __str__(self) -> str:
        waiting = "; ".join(f"rank {rank}: {doing}" for rank, doing in sorted(self.waiting.items())) or "none"
        silent = "; ".join(f"rank {rank}: for {secs:.0f} s" for rank, secs in sorted(self.silent.items())) or "none"
        return (
            f"No step ended within step_timeout_secs={self.timeout_secs:g} after global step {self.step}. "
            f"Ranks that wait: {waiting}. Ranks that do not answer: {silent}. If steps (or saves) may take this "
            "long, raise RunConfig(step_timeout_secs=...)."
        )


class InputTimeoutError(TrainingError):
    """The input gave no data within `input_timeout_secs`.

    Attributes:
        source: What was waited for.
        timeout_secs: The deadline.
    """

    def __init__(self, source: str, timeout_secs: float) -> None:
        super().__init__(source, timeout_secs)
        self.source = source
        self.timeout_secs = timeout_secs

    def __str__(self) -> str:
        return (
            f"{self.source} gave no data within input_timeout_secs={self.timeout_secs:g}. Ray Data may lack CPUs "
            "(leave some outside resources_per_worker), or its source may be slow: raise "
            "RunConfig(input_timeout_secs=...)."
        )


class InputEndedError(TrainingError):
    """An input_fn that returns tensors ended on one worker of several, whose peers cannot see it coming.

    Attributes:
        rank: The worker whose input ended.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rank = rank

    def __str__(self) -> str:
        return (
            f"The tensors that input_fn returned on rank {self.rank} came to an end. With several workers, return the "
            "tf.data.Dataset itself (all ranks then stop at the same step), or repeat the input for ever and pass "
            "steps or max_steps."
        )


class RanksDisagreeError(TrainingError):
    """The workers built graphs that cannot train together.

    Attributes:
        difference: The first difference, in words.
    """

    def __init__(self, difference: str) -> None:
        super().__init__(difference)
        self.difference = difference

    def __str__(self) -> str:
        return (
            f"The workers built different graphs: {self.difference}. model_fn must build the same variables and "
            "losses on every worker; do not branch on the rank, the clock or random numbers while building."
        )


class WorkersLostError(TrainingError):
    """Workers died more often than `failure_config` allows.

    Attributes:
        max_failures: How many deaths were allowed.
        last: The last failure, in words.
    """

    def __init__(self, max_failures: int, last: str) -> None:
        super().__init__(max_failures, last)
        self.max_failures = max_failures
        self.last = last

    def __str__(self) -> str:
        return (
            f"Training lost its workers more often than failure_config.max_failures={self.max_failures} allows. "
            f"The last failure: {self.last}. Train again with the same model_dir to go on from its last checkpoint."
        )
