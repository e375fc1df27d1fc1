"""The jobs that the driver sends to workers and tasks: frozen, picklable values."""

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
    """The user's functions, hooks and params, deserialized where they run."""

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
        labels: Label columns by name; empty without labels.
        single_label: Whether labels are one Tensor rather than a dict.
        batch_size: Rows in a batch, per replica.
        drop_remainder: Whether to drop a last batch that is not full.
        fill_null: Replacement for nulls. None: nulls outside float columns are an error.
    """

    features: Mapping[str, ColumnSpec]
    labels: Mapping[str, ColumnSpec]
    single_label: bool
    batch_size: int
    drop_remainder: bool = False
    fill_null: Any = None

    @property
    def columns(self) -> dict[str, ColumnSpec]:
        """Return all columns, features first."""
        return {**self.features, **self.labels}


@dataclass(frozen=True)
class ModelJob:
    """What all jobs have in common.

    Attributes:
        code: The fields of a `UserCode`, serialized.
        config: The run's configuration.
        model_dir: Directory or URL of checkpoints and events.
        rows: How to read a Ray Dataset. None: `code` has an input_fn.
        warm_start: A dict with the `WarmStartSettings` to use without a checkpoint, as `warm_start_from`; serialized
            like user code, since it holds the user's initializers.
    """

    code: SerializedCode[Mapping[str, Any]]
    config: RunConfig
    model_dir: str
    rows: RowSpec | None = None
    warm_start: SerializedCode[Mapping[str, Any]] | None = None

    @property
    def user_config(self) -> RunConfig:
        """Return the config for the user's functions: as in tf.estimator, with the session's `ConfigProto`."""
        return self.config.replace(session_config=self.config.resolved_session_config())

    def open_code(self) -> UserCode:
        """Deserialize the user code. Runs where the code runs, after the strategy exists."""
        return UserCode(**self.code.open())


@dataclass(frozen=True)
class TrainJob(ModelJob):
    """Train from `first_step` to `last_step`, or to the end of the input if `last_step` is None.

    Attributes:
        first_step: Global step at which the driver started the run.
        last_step: Global step at which the run ends.
        source: Identity of the input, if it is a Ray Dataset.
        generation: Generation of the driver's lease.
    """

    first_step: int = 0
    last_step: int | None = None
    source: InputSource | None = None
    generation: int = field(kw_only=True)


@dataclass(frozen=True)
class EvaluateJob(ModelJob):
    """Evaluate a checkpoint.

    Attributes:
        checkpoint: The checkpoint. None: initial weights.
        fingerprint: Tells the checkpoint from others of the same name.
        steps: Number of batches. None: all.
        name: Name of the evaluation.
    """

    checkpoint: Checkpoint | None = None
    fingerprint: str | None = None
    steps: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class PredictJob(ModelJob):
    """Predict with a checkpoint.

    Attributes:
        checkpoint: The checkpoint. None: initial weights.
        fingerprint: Tells the checkpoint from others of the same name.
        predict_keys: Names of the predictions to return. None: all.
    """

    checkpoint: Checkpoint | None = None
    fingerprint: str | None = None
    predict_keys: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ExportJob(ModelJob):
    """Export a checkpoint as a SavedModel, in the modes of the code's `receiver_fns`.

    Attributes:
        export_dir_base: Absolute path or URL of the directory for the export.
        checkpoint: The checkpoint. None: initial weights, warm-started.
        assets_extra: Absolute path or URL of each extra asset, by its destination below ``assets.extra/``.
        as_text: Whether to write the SavedModel as text.
        strip_default_attrs: Whether to remove default-valued attributes from nodes.
    """

    export_dir_base: str = ""
    checkpoint: Checkpoint | None = None
    assets_extra: Mapping[str, str] = field(default_factory=dict)
    as_text: bool = False
    strip_default_attrs: bool = False
