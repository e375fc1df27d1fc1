"""The contents of an Estimator, and the jobs made from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ray_estimator._checkpoints.store import Checkpoint, CheckpointStore, checkpoint_at
from ray_estimator._data.columns import column_specs, select_columns
from ray_estimator._data.position import beginning
from ray_estimator._jobs.jobs import EvaluateJob, ExportJob, PredictJob, RowSpec, TrainJob
from ray_estimator._storage.storage import Storage
from ray_estimator._tf_private.keras_settings import keras_settings
from ray_estimator.config import RunConfig
from ray_estimator.inputs import DatasetInput, InputFn
from ray_estimator.spec import ModeKeys
from ray_estimator.warm_start import WarmStartSettings

if TYPE_CHECKING:
    from ray_estimator._runtime import Runtime
    from ray_estimator._runtime.data.rows import RowSource
    from ray_estimator._runtime.ray_runtime import RayRuntime


logger = logging.getLogger(__name__)


class JobBuilder:
    """A builder of jobs from a model_fn, its parameters and its configuration. On the driver.

    It holds only values, so that an Estimator can be copied and serialized. A `checkpoint` of None means initial
    weights, which are those of the warm start if there is one.

    Attributes:
        model_fn: The user's function.
        params: Hyperparameters for model_fn and input_fn.
        config: The configuration, with a model_dir.
        warm_start: Initial values of variables if there is no checkpoint.
        model_dir_is_temporary: Whether model_dir is a temporary directory, because none was passed.
        storage: Access to model_dir and other URLs.
        store: The checkpoints in model_dir.
    """

    def __init__(
        self,
        model_fn: Callable[..., Any],
        params: Any,
        config: RunConfig,
        warm_start: WarmStartSettings | None,
        *,
        model_dir_is_temporary: bool,
    ) -> None:
        self.model_fn = model_fn
        self.params = params
        self.config = config
        self.warm_start = warm_start
        self.model_dir_is_temporary = model_dir_is_temporary
        self.storage = Storage(config.storage_options)
        self.store = CheckpointStore(self.model_dir, self.storage)

    @property
    def model_dir(self) -> str:
        """The directory of checkpoints and events."""
        return str(self.config.model_dir)

    def runtime(self) -> Runtime:
        """Return the runtime that runs the jobs."""
        if self.config.num_workers == 0:
            from ray_estimator._runtime.inline_runtime import InlineRuntime

            return InlineRuntime(self.config)
        return self.cluster()

    def cluster(self) -> RayRuntime:
        """Return the runtime on Ray, also if the config says in process."""
        from ray_estimator._runtime.ray_runtime import RayRuntime

        return RayRuntime(self.config, model_dir_is_temporary=self.model_dir_is_temporary)

    def training(
        self,
        runtime: Runtime,
        input_fn: InputFn,
        start: Checkpoint | None,
        hooks: Sequence[Any],
        saving_listeners: Sequence[Any],
    ) -> tuple[Callable[..., TrainJob], RowSource | None]:
        """Serialize user code; return a function that makes the job from its steps and lease, and the rows."""
        rows, parts = self._parts(
            runtime, ModeKeys.TRAIN, input_fn, start, hooks=hooks, saving_listeners=saving_listeners
        )
        return partial(TrainJob, **parts), rows

    def resumed_rows(self, rows: RowSource | None, start: Checkpoint | None, run: int) -> RowSource | None:
        """Return `rows` in the order of the run that saved `start`.

        Raises:
            InputChangedError: That run was interrupted, and its input was a different one.
        """
        if rows is None or rows.source is None:
            return rows
        position = beginning(rows.source, self.store.position_in(start), self.store.end_of_run(), run)
        if position.rows:
            logger.info("The input resumes after %d rows.", position.rows)
        return rows.with_seed(position.seed)

    def evaluation(
        self,
        runtime: Runtime,
        input_fn: InputFn,
        steps: int | None,
        hooks: Sequence[Any],
        checkpoint: Checkpoint | None,
        name: str | None,
    ) -> tuple[EvaluateJob, RowSource | None]:
        """Return the job of an evaluation of `checkpoint`, and the rows."""
        rows, parts = self._parts(runtime, ModeKeys.EVAL, input_fn, checkpoint, hooks=hooks)
        fingerprint = self._fingerprint(checkpoint)
        return EvaluateJob(**parts, checkpoint=checkpoint, fingerprint=fingerprint, steps=steps, name=name), rows

    def prediction(
        self,
        runtime: Runtime,
        input_fn: InputFn,
        predict_keys: Sequence[str] | None,
        hooks: Sequence[Any],
        checkpoint: Checkpoint | None,
    ) -> tuple[PredictJob, RowSource | None]:
        """Return the job of a prediction with `checkpoint`, and the rows."""
        rows, parts = self._parts(runtime, ModeKeys.PREDICT, input_fn, checkpoint, hooks=hooks)
        keys = None if predict_keys is None else tuple(predict_keys)
        fingerprint = self._fingerprint(checkpoint)
        return PredictJob(**parts, checkpoint=checkpoint, fingerprint=fingerprint, predict_keys=keys), rows

    def export(
        self, runtime: Runtime, receiver_fns: Mapping[str, Any], checkpoint: Checkpoint | None, **fields: Any
    ) -> ExportJob:
        """Return the job of an export of `checkpoint`, with further fields."""
        _, parts = self._parts(runtime, ModeKeys.PREDICT, None, checkpoint, receiver_fns=receiver_fns)
        return ExportJob(**parts, checkpoint=checkpoint, **fields)

    def _parts(
        self, runtime: Runtime, mode: str, input_fn: InputFn | None, checkpoint: Checkpoint | None, **code: Any
    ) -> tuple[RowSource | None, dict[str, Any]]:
        """Return the rows and the fields of every job."""
        warm_start = self._packed_warm_start(runtime) if checkpoint is None else None
        packed = runtime.pack({**self._own_code(input_fn), **code})
        runtime.connect()
        rows, row_spec = self._rows(input_fn, mode)
        fields = {"code": packed, "config": self.config, "model_dir": self.model_dir}
        return rows, {**fields, "rows": row_spec, "warm_start": warm_start}

    def _own_code(self, input_fn: InputFn | None) -> dict[str, Any]:
        own = {"model_fn": self.model_fn, "params": self.params, "keras_settings": keras_settings()}
        if isinstance(input_fn, DatasetInput):
            return {**own, "map_fn": input_fn.map_fn}
        return {**own, "input_fn": input_fn}

    def _rows(self, input_fn: InputFn | None, mode: str) -> tuple[RowSource | None, RowSpec | None]:
        """Return how to read a Ray Dataset, checked against its schema; (None, None) for other inputs."""
        if not isinstance(input_fn, DatasetInput):
            return None, None
        from ray_estimator._runtime.data.schema import arrow_schema, ray_is_ready
        from ray_estimator._runtime.data.source import rows_in_order, training_rows

        ray_is_ready()
        dataset = input_fn.resolve()
        schema = arrow_schema(dataset)
        labels = input_fn.label_columns
        if mode == ModeKeys.PREDICT:
            labels = tuple(name for name in labels if name in schema.names)
        features, labels_read = select_columns(schema.names, input_fn.feature_columns, labels)
        batch_size = input_fn.batch_size
        if mode == ModeKeys.PREDICT and self.config.predict_batch_size is not None:
            batch_size = self.config.predict_batch_size
        spec = RowSpec(
            features=column_specs(schema, features),
            labels=column_specs(schema, labels_read) if mode != ModeKeys.PREDICT else {},
            single_label=input_fn.single_label,
            batch_size=batch_size,
            drop_remainder=input_fn.drop_remainder,
            fill_null=input_fn.fill_null,
        )
        if mode == ModeKeys.TRAIN:
            return training_rows(dataset, schema, spec.columns, input_fn, self.config), spec
        return rows_in_order(dataset, spec.columns, input_fn, batch_size, self.config), spec

    def _packed_warm_start(self, runtime: Runtime) -> Any:
        """Return the serialized warm start, with a fixed checkpoint for all processes; None if there is none."""
        start = self._warm_checkpoint()
        if self.warm_start is None or start is None:
            return None
        return runtime.pack({"warm_start_from": self.warm_start._replace(ckpt_to_initialize_from=start.path)})

    def _warm_checkpoint(self) -> Checkpoint | None:
        if self.warm_start is None:
            return None
        return checkpoint_at(self.warm_start.ckpt_to_initialize_from, self.storage)

    def _fingerprint(self, checkpoint: Checkpoint | None) -> str | None:
        start = checkpoint or self._warm_checkpoint()
        return None if start is None else self.store.fingerprint(start)
