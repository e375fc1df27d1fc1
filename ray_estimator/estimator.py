"""`Estimator`: train, evaluate, predict and export one model."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ray_estimator._checkpoints.event_files import eval_dir_name
from ray_estimator._checkpoints.store import Checkpoint
from ray_estimator._data.batches import num_rows_of, rows_of
from ray_estimator._driver.job_builder import JobBuilder
from ray_estimator._driver.training_run import prepare_training
from ray_estimator._engine import entrypoints
from ray_estimator._process.signals import Stop
from ray_estimator._reporting.summary import Summary
from ray_estimator._validation.arguments import (
    check_argument_order,
    check_keras,
    check_steps,
    checked_config,
    checked_hooks,
)
from ray_estimator._validation.exports import checked_assets, checked_receiver_fns
from ray_estimator._validation.user_functions import call_model_fn, check_input_fn, check_model_fn
from ray_estimator.config import RunConfig
from ray_estimator.errors import EstimatorNotTrainedError
from ray_estimator.inputs import DatasetInput, InputFn
from ray_estimator.spec import EstimatorSpec, ModeKeys
from ray_estimator.warm_start import WarmStartSettings, as_settings

T = TypeVar("T")

_MAY_BE_OVERRIDDEN = {"model_fn", "latest_checkpoint", "experimental_export_all_saved_models"}

logger = logging.getLogger(__name__)


class Estimator:
    """A model that is trained, evaluated, used for predictions and exported, on a Ray cluster or in this process.

    All methods run on the driver. They send `model_fn` to Ray Train workers (train) or to Ray tasks (evaluate,
    predict, export). With ``ScalingConfig(num_workers=0)`` everything runs in the calling process instead. The first
    method that needs Ray calls `ray.init()` if Ray is not initialized. Ray is never shut down.

    Args:
        model_fn: A function that builds the model in a v1 graph and returns an `EstimatorSpec`. It takes `features`
            and any of ``(labels, mode, params, config, model_dir)``, by name.
        model_dir: Directory of checkpoints and events: a local path or any fsspec URL. With several nodes, all of them
            must be able to access it. None: the config's, otherwise a temporary local directory.
        config: The configuration. None: the defaults, with one worker.
        params: Hyperparameters, usually a dict. model_fn and input_fn get a copy.
        warm_start_from: Initial values of an untrained model's variables: the path of a checkpoint, a model_dir or a
            SavedModel, or `WarmStartSettings`.

    A subclass may add methods and call ``super().__init__(model_fn=...)``. Of the members below it may override only
    `model_fn`, `latest_checkpoint` and `experimental_export_all_saved_models`.

    Raises:
        ValueError: An argument is missing or contradicts another, or a subclass overrides another member.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        model_fn: Callable[..., Any],
        model_dir: str | os.PathLike[str] | None = None,
        config: RunConfig | None = None,
        params: Any = None,
        *,
        warm_start_from: str | bytes | os.PathLike[str] | WarmStartSettings | None = None,
    ) -> None:
        _refuse_overrides(type(self))
        check_model_fn(model_fn, params)
        effective = checked_config(config, model_dir)
        check_keras(model_fn, effective)
        self._job_builder = JobBuilder(
            model_fn,
            copy.deepcopy(params or {}),
            effective,
            as_settings(warm_start_from),
            model_dir_is_temporary=model_dir is None and (config is None or config.model_dir is None),
        )

    # Properties and checkpoints

    @property
    def model_dir(self) -> str:
        """The directory of checkpoints and events."""
        return self._job_builder.model_dir

    @property
    def config(self) -> RunConfig:
        """A copy of the configuration."""
        return copy.deepcopy(self._job_builder.config)

    @property
    def params(self) -> Any:
        """A copy of the hyperparameters."""
        return copy.deepcopy(self._job_builder.params)

    @property
    def model_fn(self) -> Callable[[Any, Any, str, RunConfig], EstimatorSpec]:
        """A function ``(features, labels, mode, config)`` that calls model_fn with the Estimator's params."""

        def public_model_fn(features: Any, labels: Any, mode: str, config: RunConfig) -> EstimatorSpec:
            return call_model_fn(
                self._job_builder.model_fn,
                features=features,
                labels=labels,
                mode=mode,
                config=config,
                params=self.params,
                model_dir=self.model_dir,
            )

        return public_model_fn

    def eval_dir(self, name: str | None = None) -> str:
        """Return the directory of event files for evaluations with this `name`."""
        return self._job_builder.storage.join(self.model_dir, eval_dir_name(name))

    def latest_checkpoint(self) -> str | None:
        """Return the path of the newest intact checkpoint, without suffix; None if there is none."""
        newest = self._job_builder.store.latest()
        return None if newest is None else newest.path

    def get_variable_names(self) -> list[str]:
        """Return the names of all variables in the newest checkpoint, including optimizer slots and the global step.

        Raises:
            EstimatorNotTrainedError: There is no checkpoint.
        """
        return self._read_variables(entrypoints.variable_names)

    def get_variable_value(self, name: str) -> Any:
        """Return the value of a variable in the newest checkpoint, as a NumPy array.

        Raises:
            EstimatorNotTrainedError: There is no checkpoint.
            ValueError: There is no such variable.
        """
        return self._read_variables(entrypoints.variable_value, name)

    # Train, evaluate, predict, export

    def train(
        self,
        input_fn: InputFn,
        steps: int | None = None,
        hooks: Sequence[Any] | None = None,
        max_steps: int | None = None,
        *,
        saving_listeners: Sequence[Any] | None = None,
    ) -> Estimator:
        """Train, starting from the newest checkpoint in model_dir if there is one.

        Each worker is one process. All workers run the same steps:

            create the strategy; restore the newest checkpoint, or initialize
            hooks.begin(); save; hooks.after_create_session()
            until the last step, the end of the input, or a hook's request to stop:
                hooks.before_run(); one step; save if it is due; hooks.after_run()
            save the last step; hooks.end()

        If a worker dies, Ray Train restarts the whole group, which resumes from the newest checkpoint and trains to the
        same last step. Errors of user code and NaN losses are not retried.

        Ctrl-C and SIGTERM, received in the main thread, stop all workers at the same step, publish its checkpoint, and
        are then raised. The next call resumes from there, with the next row of a Ray Dataset. If this takes longer than
        `RunConfig.stop_timeout_secs`, or a second signal arrives, training ends at once and the newest published
        checkpoint is kept. (In tf.estimator an interrupt loses all steps since the last checkpoint.) A preemption
        notice for a node stops the workers in the same way. They resume on other nodes, and this does not count as a
        failure.

        Args:
            input_fn: `dataset_input_fn(...)`, or a function as in tf.estimator. The function runs on every worker, in
                the graph, may take `mode`, `params`, `config` and `input_context`, and returns a `tf.data.Dataset` or
                ``(features, labels)``. Its batches are per replica. After a run that was killed or interrupted, each
                worker resumes a `tf.data.Dataset` with the next batch if the number of workers and the pipeline are the
                same and TensorFlow can save its iterator. Otherwise the input starts again, with a log message. (In
                tf.estimator it always starts again.) Files are identified by name, TFRecords by position.
            steps: Number of steps to train for. None: until the input ends.
            hooks: `SessionRunHook`s, or functions without arguments that create one on each worker after model_fn. They
                run on every rank. Changes to them do not come back to the driver.
            max_steps: Global step to stop at. If it is reached already, nothing is trained. Excludes `steps`.
            saving_listeners: `CheckpointSaverListener`s, or functions that create one. They run on the chief.

        Returns:
            The Estimator itself.

        Raises:
            ValueError: Both `steps` and `max_steps` are set, one is not positive, or the dataset lacks a column.
            TypeError: A hook or listener has the wrong type, or a Ray Dataset is passed without `dataset_input_fn`.
            ShippingError: User code cannot be serialized and sent to the workers.
            ModelDirInUseError: Another driver, or another thread of this one, trains in model_dir.
            ModelDirAccessError: model_dir cannot be used from the driver or from the workers.
            TrainingError: Not enough cluster resources, a step that hangs, or too many lost workers.
            NanLossDuringTrainingError: The loss is NaN (TensorFlow's own error).
            KeyboardInterrupt, SystemExit: A signal stopped training. The exit status for SIGTERM is 143.
        """
        training = prepare_training(self._job_builder, input_fn, steps, hooks, max_steps, saving_listeners)
        if training is not None:
            training.run(Stop())
        return self

    def evaluate(
        self,
        input_fn: InputFn,
        steps: int | None = None,
        hooks: Sequence[Any] | None = None,
        checkpoint_path: str | None = None,
        name: str | None = None,
        *,
        allow_untrained: bool = False,
    ) -> dict[str, Any]:
        """Evaluate a checkpoint on the input, to its end or for `steps` batches.

        A Ray Dataset is split into ranges of whole batches, which are evaluated in parallel Ray tasks. Their metric
        states are merged before values are computed, so the results equal those of a single pass. Other inputs, and
        calls with hooks, run as one task.

        Args:
            input_fn: As in `train`. `num_epochs=None` means one pass.
            steps: Number of batches. None: all.
            hooks: `SessionRunHook`s, or functions that create one.
            checkpoint_path: Checkpoint to evaluate. None: the newest intact one in model_dir.
            name: Events are written to ``eval_<name>``.
            allow_untrained: Whether to evaluate initial weights if there is no checkpoint.

        Returns:
            Every metric by name, as a Python or NumPy scalar or array, `loss`, which is the mean over batches, and
            `global_step`.

        Raises:
            EstimatorNotTrainedError: There is no checkpoint.
            CheckpointNotFoundError: There is no checkpoint at `checkpoint_path`.
            CheckpointDamagedError: The checkpoint at `checkpoint_path`, or every checkpoint in model_dir, is damaged.
            ValueError: `steps` is not positive, or a metric is named `loss` or `global_step`.
        """
        check_argument_order(steps, hooks)
        check_input_fn(input_fn, ModeKeys.EVAL)
        check_steps("steps", steps)
        hooks = checked_hooks(hooks)
        runtime = self._job_builder.runtime()
        summary = Summary(self._job_builder.config)

        def evaluate(checkpoint: Checkpoint | None) -> dict[str, Any]:
            job, rows = self._job_builder.evaluation(runtime, input_fn, steps, hooks, checkpoint, name)
            results = runtime.evaluate(job, rows, one_task=bool(hooks))
            summary.evaluated(results, name)
            return results

        return self._with_checkpoint(checkpoint_path, evaluate, allow_untrained=allow_untrained)

    def predict(
        self,
        input_fn: InputFn,
        predict_keys: str | Sequence[str] | None = None,
        hooks: Sequence[Any] | None = None,
        checkpoint_path: str | None = None,
        *,
        yield_single_examples: bool = True,
        allow_untrained: bool = False,
    ) -> Iterator[Any]:
        """Yield predictions in the order of the input.

        This is a generator: it checks its arguments and starts work at the first `next()`. Closing it early schedules
        no further work.

        Args:
            input_fn: As in `train`. Labels are not needed, and `num_epochs=None` means one pass.
            predict_keys: Names of the predictions to yield, if they are a dict. Unknown names are ignored.
            hooks: `SessionRunHook`s, or functions that create one. With hooks, the prediction runs as one task.
            checkpoint_path: Checkpoint to use. None: the newest intact one in model_dir.
            yield_single_examples: Whether to yield rows. Otherwise whole batches, as model_fn returned them.
            allow_untrained: Whether to predict with initial weights if there is no checkpoint.

        Yields:
            For each row (or batch) an array, or a dict of arrays by prediction name.

        Raises:
            EstimatorNotTrainedError: There is no checkpoint.
            CheckpointNotFoundError, CheckpointDamagedError: As in `evaluate`.
            ValueError: Predictions of a batch differ in length, or none of `predict_keys` is a prediction.
        """
        check_input_fn(input_fn, ModeKeys.PREDICT)
        hooks = checked_hooks(hooks)
        runtime = self._job_builder.runtime()
        keys = (predict_keys,) if isinstance(predict_keys, str) else predict_keys
        summary, number = Summary(self._job_builder.config), 0
        with contextlib.ExitStack() as stack:

            def start(checkpoint: Checkpoint | None) -> tuple[Iterator[Any], Checkpoint | None]:
                job, rows = self._job_builder.prediction(runtime, input_fn, keys, hooks, checkpoint)
                batches = stack.enter_context(contextlib.closing(runtime.predict(job, rows, one_task=bool(hooks))))
                # Read the first batch here, where a damaged checkpoint can still be replaced by an older one.
                first = list(itertools.islice(batches, 1))
                stack.enter_context(self._job_builder.store.reading(checkpoint))
                return itertools.chain(first, batches), checkpoint

            batches, used = self._with_checkpoint(checkpoint_path, start, allow_untrained=allow_untrained)
            for batch in batches:
                if yield_single_examples:
                    yield from rows_of(batch)
                    number += num_rows_of(batch)
                else:
                    yield batch
                    number += 1
            summary.predicted(number, "row" if yield_single_examples else "batch", used)

    def predict_dataset(
        self,
        input_fn: InputFn,
        *,
        predict_keys: str | Sequence[str] | None = None,
        keep_columns: Sequence[str] = (),
        checkpoint_path: str | None = None,
    ) -> Any:
        """Return a lazy Ray Dataset of predictions, in the order of the input, for example for `write_parquet`.

        The predictions run when the Dataset is consumed, in Ray Data's tasks with `task_resources`, also with
        ``num_workers=0``. Errors are raised by Ray Data. The checkpoint is chosen by this call and must still exist
        when the Dataset is consumed. Batches have `batch_size` rows, except the last one of a task. With
        `ray.data.DataContext.checkpoint_config`, a job that was killed while writing resumes with the missing rows if
        `keep_columns` has the id column.

        Args:
            input_fn: `dataset_input_fn(...)`.
            predict_keys: As in `predict`.
            keep_columns: Columns of the input to keep alongside the predictions.
            checkpoint_path: As in `predict`.

        Returns:
            A `ray.data.Dataset` with the kept columns and a column for each prediction. If model_fn does not predict a
            dict, the column is named `predictions`.

        Raises:
            TypeError: `input_fn` does not come from `dataset_input_fn`.
            EstimatorNotTrainedError: There is no checkpoint.
            CheckpointNotFoundError, CheckpointDamagedError: As in `evaluate`.
            ValueError: `keep_columns` names a column that the dataset does not have.
        """
        if not isinstance(input_fn, DatasetInput):
            raise TypeError(
                f"input_fn must be dataset_input_fn(dataset, batch_size=...), got {input_fn!r}. For other inputs use "
                "predict."
            )
        runtime = self._job_builder.cluster()
        keys = (predict_keys,) if isinstance(predict_keys, str) else predict_keys
        kept = tuple(dict.fromkeys([keep_columns] if isinstance(keep_columns, str) else keep_columns))

        def start(checkpoint: Checkpoint | None) -> Any:
            job, rows = self._job_builder.prediction(runtime, input_fn, keys, (), checkpoint)
            if rows is None:
                raise AssertionError("A DatasetInput has rows.")
            names = rows.dataset.schema().names
            if missing := [name for name in kept if name not in names]:
                raise ValueError(f"keep_columns must be columns of the dataset, got {missing}. It has {names}.")
            return runtime.predicted_dataset(job, rows, kept)

        return self._with_checkpoint(checkpoint_path, start)

    def export_savedmodel(
        self,
        export_dir_base: str | os.PathLike[str],
        serving_input_receiver_fn: Callable[[], Any],
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        checkpoint_path: str | None = None,
        strip_default_attrs: bool = False,
    ) -> str:
        """Export the model of a checkpoint as a SavedModel for serving. Runs as one Ray task.

        Args:
            export_dir_base: Parent directory, a local path or URL. The export is written to a new subdirectory, named
                by a timestamp.
            serving_input_receiver_fn: Function that returns a `ServingInputReceiver`. It runs in the graph.
            assets_extra: Source path or URL by destination below ``assets.extra/``.
            as_text: Whether to write the SavedModel's proto as text.
            checkpoint_path: Checkpoint to export. None: the newest intact one in model_dir.
            strip_default_attrs: Whether to omit attributes that have their default value.

        Returns:
            The path or URL of the new directory.

        Raises:
            ValueError: There is no receiver function or no checkpoint, or the checkpoint does not match model_fn.
        """
        receiver_fns = {ModeKeys.PREDICT: _required(serving_input_receiver_fn)}
        return self._export(
            export_dir_base,
            receiver_fns,
            assets_extra,
            as_text,
            checkpoint_path,
            strip_default_attrs=strip_default_attrs,
        )

    def export_saved_model(
        self,
        export_dir_base: str | os.PathLike[str],
        serving_input_receiver_fn: Callable[[], Any],
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        checkpoint_path: str | None = None,
        experimental_mode: str = ModeKeys.PREDICT,
    ) -> str:
        """Export like `export_savedmodel`, without attributes that have their default value, and in any mode.

        Args:
            export_dir_base: As in `export_savedmodel`.
            serving_input_receiver_fn: As in `export_savedmodel`. In TRAIN and EVAL it returns a
                `SupervisedInputReceiver`.
            assets_extra: As in `export_savedmodel`.
            as_text: As in `export_savedmodel`.
            checkpoint_path: As in `export_savedmodel`.
            experimental_mode: Mode in which model_fn builds the exported graph.

        Returns:
            The path or URL of the new directory.

        Raises:
            ValueError: As in `export_savedmodel`, or the mode is unknown.
        """
        receiver_fns = {experimental_mode: _required(serving_input_receiver_fn)}
        return self._export(export_dir_base, receiver_fns, assets_extra, as_text, checkpoint_path)

    def experimental_export_all_saved_models(
        self,
        export_dir_base: str | os.PathLike[str],
        input_receiver_fn_map: Mapping[str, Callable[[], Any]],
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        checkpoint_path: str | None = None,
    ) -> str:
        """Export a SavedModel with one MetaGraph for each mode in the map and one set of variables.

        PREDICT has the signatures of its `export_outputs`, under the tag ``serve``. TRAIN and EVAL, under the tags
        ``train`` and ``eval``, have one signature of that name with the loss, the predictions, and the value and update
        op of each metric. TRAIN's train_op is stored where TensorFlow's loaders expect it. The variables are those of
        the first mode in the order TRAIN, EVAL, PREDICT. The other modes must not need further ones.

        Args:
            export_dir_base: As in `export_savedmodel`.
            input_receiver_fn_map: By mode, a function that returns a `SupervisedInputReceiver` or, for PREDICT, a
                `ServingInputReceiver`.
            assets_extra: As in `export_savedmodel`.
            as_text: As in `export_savedmodel`.
            checkpoint_path: As in `export_savedmodel`.

        Returns:
            The path or URL of the new directory.

        Raises:
            ValueError: There is no mode, an unknown one, or no checkpoint, or the checkpoint does not match model_fn.
        """
        return self._export(export_dir_base, input_receiver_fn_map, assets_extra, as_text, checkpoint_path)

    # Shared parts of the methods above

    def _export(
        self,
        export_dir_base: str | os.PathLike[str],
        receiver_fns: Mapping[str, Any],
        assets_extra: Any,
        as_text: bool,
        checkpoint_path: str | None,
        *,
        strip_default_attrs: bool = True,
    ) -> str:
        receiver_fns = checked_receiver_fns(receiver_fns)
        base = self._job_builder.storage.normalize(os.fsdecode(export_dir_base))
        assets = checked_assets(assets_extra, self._job_builder.storage)
        runtime = self._job_builder.runtime()
        summary = Summary(self._job_builder.config)

        def export(checkpoint: Checkpoint | None) -> str:
            job = self._job_builder.export(
                runtime,
                receiver_fns,
                checkpoint,
                export_dir_base=base,
                assets_extra=assets,
                as_text=as_text,
                strip_default_attrs=strip_default_attrs,
            )
            path = runtime.run(entrypoints.export, job)
            summary.exported(path, checkpoint)
            return path

        try:
            return self._with_checkpoint(checkpoint_path, export)
        except EstimatorNotTrainedError as error:
            raise ValueError(f"Couldn't find trained model at {self.model_dir}.") from error

    def _read_variables(self, read: Callable[..., T], *args: Any) -> T:
        builder = self._job_builder

        def run(checkpoint: Checkpoint | None) -> T:
            if checkpoint is None:
                raise EstimatorNotTrainedError(self.model_dir)
            return builder.runtime().run(read, self.model_dir, builder.config, checkpoint, *args)

        return self._with_checkpoint(None, run)

    def _with_checkpoint(
        self, checkpoint_path: str | None, use: Callable[[Checkpoint | None], T], *, allow_untrained: bool = False
    ) -> T:
        """Return what `use` returns for the checkpoint at `checkpoint_path`, or for the newest one.

        `use` gets None for initial weights. The checkpoint's files are kept until it returns. If the newest checkpoint
        turns out to be damaged, `use` is called again with the one before.
        """
        store = self._job_builder.store
        if checkpoint_path is None and type(self).latest_checkpoint is not Estimator.latest_checkpoint:
            checkpoint_path = self.latest_checkpoint()  # the override of a subclass
        if checkpoint_path is not None:
            named = store.find(os.fsdecode(checkpoint_path))
            with store.reading(named):
                return use(named)

        def use_newest(newest: Checkpoint | None) -> T:
            if newest is None and not allow_untrained and self._job_builder.warm_start is None:
                raise EstimatorNotTrainedError(self.model_dir)
            return use(newest)

        return store.with_newest(use_newest)


# For the other modules of the package


def check_estimator(estimator: Any) -> None:
    """Check that the argument `estimator` is an Estimator, with a TypeError."""
    if not isinstance(estimator, Estimator):
        raise TypeError(f"`estimator` must have type ray_estimator.Estimator, got {estimator!r}.")


def job_builder_of(estimator: Estimator) -> JobBuilder:
    """Return the JobBuilder of an Estimator, also of a subclass."""
    return estimator._job_builder


def derived_estimator(estimator: Estimator, model_fn: Callable[..., Any]) -> Estimator:
    """Return an Estimator for `model_fn` with the config, model_dir and warm start of `estimator`."""
    builder = estimator._job_builder
    derived = Estimator(model_fn, config=estimator.config, warm_start_from=builder.warm_start)
    derived._job_builder.model_dir_is_temporary = builder.model_dir_is_temporary
    return derived


def _required(input_receiver_fn: Any) -> Any:
    if input_receiver_fn is None:
        raise ValueError("An input_receiver_fn must be defined.")
    return input_receiver_fn


def _refuse_overrides(kind: type[Estimator]) -> None:
    """Refuse overrides, as tf.estimator does: model_fn is the only way to change what an Estimator does."""
    own = {name for name in vars(Estimator) if not name.startswith("__")} - _MAY_BE_OVERRIDDEN
    overridden = sorted(name for name in own if getattr(kind, name) is not getattr(Estimator, name))
    if overridden:
        raise ValueError(
            f"Subclasses of Estimator cannot override members of Estimator. {kind} does override {overridden}: rename "
            "them, and change the model in model_fn."
        )
