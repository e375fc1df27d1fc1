"""What travels between driver and workers: frozen, plain, picklable values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

    from ray_estimator._checkpoints import Checkpoint
    from ray_estimator._columns import ColumnSpec
    from ray_estimator._position import InputPosition, InputSource
    from ray_estimator._shipping import Cargo
    from ray_estimator.config import RunConfig

T = TypeVar("T")

Tables = Callable[[], "Iterator[pa.Table]"]
"""Starts an iterator over rows, in order; called once for each pass."""


@dataclass(frozen=True)
class UserCode:
    """Everything of the caller's that runs in the engine, as it is after its cargo was opened."""

    model_fn: Callable[..., Any]
    params: dict[str, Any] | None = None
    input_fn: Callable[..., Any] | None = None
    map_fn: Callable[..., Any] | None = None
    hooks: Sequence[Any] = ()
    saving_listeners: Sequence[Any] = ()
    receiver_fns: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    keras_settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RowSpec:
    """How the rows of a Ray Dataset become features and labels.

    Attributes:
        features: Feature columns by name; features are always a dict.
        labels: Label columns by name; empty if there are none.
        single_label: Whether labels are one Tensor rather than a dict.
        batch_size: Rows of a batch, for each replica.
        drop_remainder: Whether a last batch that is not full is dropped.
        fill_null: What stands for null, or None to refuse nulls outside float columns.
    """

    features: Mapping[str, ColumnSpec]
    labels: Mapping[str, ColumnSpec]
    single_label: bool
    batch_size: int
    drop_remainder: bool = False
    fill_null: Any = None

    @property
    def columns(self) -> dict[str, ColumnSpec]:
        """Every column that is read, features first."""
        return {**self.features, **self.labels}


@dataclass(frozen=True)
class ModelJob:
    """The model of a job: what every verb sends.

    Attributes:
        code: A cargo that opens to a `UserCode`'s fields.
        config: The run's configuration.
        model_dir: Where checkpoints and events are.
        rows: How to read a Ray Dataset; None if `code` holds an input_fn.
        warm_start: Where variables start from when there is no checkpoint: a cargo that opens to a dict with
            `WarmStartSettings` as `warm_start_from`. They hold the user's initializers, and travel as user code does.
    """

    code: Cargo[Mapping[str, Any]]
    config: RunConfig
    model_dir: str
    rows: RowSpec | None = None
    warm_start: Cargo[Mapping[str, Any]] | None = None

    @property
    def users_config(self) -> RunConfig:
        """The config as the user's functions see it: as in tf.estimator, with the `ConfigProto` of the session."""
        return self.config.replace(session_config=self.config.resolved_session_config())

    def open_code(self) -> UserCode:
        """Opens the cargo. Runs where the code is to run, after the strategy exists."""
        return UserCode(**self.code.open())


@dataclass(frozen=True)
class TrainJob(ModelJob):
    """Train from `first_step` to `last_step`, both as the driver saw them; no `last_step`: until the input ends.

    `generation` is that of the driver's lease; `source` tells the rows from others, if the input is a Ray Dataset.
    """

    first_step: int = 0
    last_step: int | None = None
    source: InputSource | None = None
    generation: int = field(kw_only=True)


@dataclass(frozen=True)
class EvaluateJob(ModelJob):
    """Evaluate `checkpoint`; None means initial weights. `fingerprint` tells it from others of the same name."""

    checkpoint: Checkpoint | None = None
    fingerprint: str | None = None
    steps: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class PredictJob(ModelJob):
    """Predict with `checkpoint`; None means initial weights. `fingerprint` tells it from others of the same name."""

    checkpoint: Checkpoint | None = None
    fingerprint: str | None = None
    predict_keys: tuple[str, ...] | None = None
    yield_single_examples: bool = True


@dataclass(frozen=True)
class ExportJob(ModelJob):
    """Export `checkpoint` as a SavedModel under `export_dir_base`; None means initial weights, warm-started.

    The code's `receiver_fns` say in which modes; paths in `assets_extra` and `export_dir_base` are absolute.
    """

    export_dir_base: str = ""
    checkpoint: Checkpoint | None = None
    assets_extra: Mapping[str, str] = field(default_factory=dict)
    as_text: bool = False
    strip_default_attrs: bool = False


@dataclass(frozen=True)
class TrainResult:
    """What a training worker returns: its rank's view after the last step.

    Attributes:
        step: The global step.
        loss: The loss of the last step.
        steps_made: How many steps this start of the group made.
        cut_short: Of the chief: whether the run stopped before its end because the worker was asked to.
        examples_per_sec: Its rate over all ranks and all its steps but the first, without start and end.
        published_step: The newest checkpoint, on the chief; None if there is none.
    """

    step: int
    loss: float | None
    steps_made: int
    cut_short: bool = False
    examples_per_sec: float | None = None
    published_step: int | None = None


@dataclass(frozen=True)
class MetricState:
    """Metric variables after a range of rows, by name.

    Attributes:
        values: Variable values.
        initial: The same before the first batch; merging counts them once.
        unmergeable: Why the states of ranges may not be added up; None if they may.
        num_batches: Batches that went in.
    """

    values: Mapping[str, Any]
    initial: Mapping[str, Any]
    unmergeable: str | None
    num_batches: int


@dataclass(frozen=True)
class PredictedRange:
    """Predictions of a range of rows.

    Attributes:
        batches: One value for each batch, in order: an array, or a dict of arrays.
        one_task_because: Why the prediction must run as one task instead; then `batches` is empty.
    """

    batches: Sequence[Any]
    one_task_because: str | None = None


@dataclass
class Pulse:
    """What one worker says of itself. The engine writes it, the runtime reads it from another thread.

    Attributes:
        phase: What the worker does now, in words ("in step 12").
        since: When the phase began, in `time.monotonic()` of this process.
        step: The last global step that ended; -1 before the session is open.
        loss: The last loss that was looked at.
        examples_per_sec: Global rate; None until it is known.
        target: The last step of the run, if there is one.
        step_secs: How long a step took of late, with hooks and input.
        input_wait: The fraction of the last interval that went by in waiting for input; None if nobody measures it.
        published_step: The newest checkpoint that is published, on the chief.
        publishing_step: The one that is on its way, on the chief.
        publishing_secs: How long the last one was on its way.
    """

    phase: str = "starting"
    since: float = field(default_factory=time.monotonic)
    step: int = -1
    loss: float | None = None
    examples_per_sec: float | None = None
    target: int | None = None
    step_secs: float | None = None
    input_wait: float | None = None
    published_step: int | None = None
    publishing_step: int | None = None
    publishing_secs: float | None = None

    def enter(self, phase: str) -> None:
        """Notes that a new phase begins now."""
        self.phase = phase
        self.since = time.monotonic()

    def vitals(self) -> Vitals:
        """What the monitor is told."""
        return Vitals(
            phase=self.phase,
            secs_in_phase=time.monotonic() - self.since,
            step=self.step,
            loss=self.loss,
            examples_per_sec=self.examples_per_sec,
            step_secs=self.step_secs,
            input_wait=self.input_wait,
            published_step=self.published_step,
            publishing_step=self.publishing_step,
            publishing_secs=self.publishing_secs,
        )


@dataclass(frozen=True)
class Vitals:
    """One rank as the monitor knows it.

    Attributes:
        phase: What it does, in words.
        secs_in_phase: Since when, at its last sign of life.
        step: The last global step that ended; -1 before the session is open.
        loss: The last loss it looked at.
        examples_per_sec: Rate over all ranks.
        step_secs: As in `Pulse`, and so are the others.
    """

    phase: str
    secs_in_phase: float
    step: int
    loss: float | None
    examples_per_sec: float | None
    step_secs: float | None = None
    input_wait: float | None = None
    published_step: int | None = None
    publishing_step: int | None = None
    publishing_secs: float | None = None


@dataclass(frozen=True)
class GroupView:
    """What the driver sees.

    Attributes:
        attempt: Name of the current group; None before the first one has started.
        number: Which group it is, from 1; 0 before the first one.
        vitals: The ranks that were heard of.
        silent_secs: Seconds since each was last heard of.
        actors: Handles by which the ranks' processes can be killed.
        failures: What ended earlier groups, in words.
        nodes: The nodes where the ranks run, by Ray's ids.
    """

    attempt: str | None
    number: int
    vitals: dict[int, Vitals]
    silent_secs: dict[int, float]
    actors: dict[int, Any]
    failures: tuple[str, ...]
    nodes: Mapping[int, str] = field(default_factory=dict)


class TrainingRows(Protocol):
    """One rank's rows in training."""

    @property
    def rows_per_epoch(self) -> int | None:
        """How many rows an epoch has, of all ranks together; None until one has been seen to its end."""

    def tables_from(self, position: InputPosition) -> Tables:
        """The rows behind those that are consumed."""


class Worker(Protocol):
    """Where a training job runs: one process of a group, or the caller's own."""

    @property
    def rank(self) -> int:
        """Position in the group, from 0."""

    @property
    def attempt(self) -> int:
        """Which start of the group it belongs to, from 1."""

    @property
    def addresses(self) -> Sequence[str]:
        """``host:port`` of every worker of the group, in rank order; empty if there is one."""

    @property
    def num_cpus(self) -> int | None:
        """CPUs that this worker may use; None if all of the host's."""

    @property
    def pulse(self) -> Pulse:
        """What the engine says of itself while it runs."""

    @property
    def rows(self) -> TrainingRows | None:
        """This rank's rows, if the input is a Ray Dataset."""

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether the run is to end after the step that runs now. The chief looks."""

    def exchange(self, topic: str, value: T) -> list[T]:
        """Gives every rank's `value`, in rank order. Every rank calls it, with the same topics in the same order.

        Each topic of an attempt serves once.
        """
