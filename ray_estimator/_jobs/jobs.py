"""What travels between driver and workers: frozen, plain, picklable values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_estimator._checkpoints.store import Checkpoint
    from ray_estimator._data.columns import ColumnSpec
    from ray_estimator._data.position import InputSource
    from ray_estimator._jobs.serialization import SerializedCode
    from ray_estimator.config import RunConfig


@dataclass(frozen=True)
class UserCode:
    """Everything of the caller's that runs in the engine, as it is after its serialized code was opened."""

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
        code: A serialized code that opens to a `UserCode`'s fields.
        config: The run's configuration.
        model_dir: Where checkpoints and events are.
        rows: How to read a Ray Dataset; None if `code` holds an input_fn.
        warm_start: Where variables start from when there is no checkpoint: a serialized code that opens to a dict with
            `WarmStartSettings` as `warm_start_from`. They hold the user's initializers, and travel as user code does.
    """

    code: SerializedCode[Mapping[str, Any]]
    config: RunConfig
    model_dir: str
    rows: RowSpec | None = None
    warm_start: SerializedCode[Mapping[str, Any]] | None = None

    @property
    def users_config(self) -> RunConfig:
        """The config as the user's functions see it: as in tf.estimator, with the `ConfigProto` of the session."""
        return self.config.replace(session_config=self.config.resolved_session_config())

    def open_code(self) -> UserCode:
        """Opens the serialized code. Runs where the code is to run, after the strategy exists."""
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
