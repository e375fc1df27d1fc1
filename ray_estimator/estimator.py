"""`Estimator`: the verbs. Each checks, resolves, runs and returns; all of it on the driver."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ray_estimator._checkpoints.event_files import eval_dir_name
from ray_estimator._checkpoints.lease import hold
from ray_estimator._checkpoints.store import Checkpoint
from ray_estimator._data.batches import num_rows_of, rows_of
from ray_estimator._engine import entrypoints
from ray_estimator._job_builder import JobBuilder
from ray_estimator._jobs.last_step import last_step_of, own_target
from ray_estimator._process.signals import Stop, stopped_by_signals
from ray_estimator._reporting.summary import Summary
from ray_estimator._validation.arguments import (
    check_argument_order,
    check_keras,
    check_positive,
    checked_config,
    checked_hooks,
    checked_listeners,
)
from ray_estimator._validation.exports import checked_assets, checked_receiver_fns
from ray_estimator._validation.user_functions import call_model_fn, check_input_fn, check_model_fn
from ray_estimator.config import RunConfig
from ray_estimator.errors import EstimatorNotTrainedError, RayEstimatorError
from ray_estimator.inputs import DatasetInput, InputFn
from ray_estimator.spec import EstimatorSpec, ModeKeys
from ray_estimator.warm_start import WarmStartSettings, as_settings

T = TypeVar("T")

_MAY_BE_OVERRIDDEN = {"model_fn", "latest_checkpoint", "experimental_export_all_saved_models"}

logger = logging.getLogger(__name__)


class Estimator:
    """Trains, evaluates, serves and exports one model, on a Ray cluster or in this process.

    All methods run on the driver. They send `model_fn` to Ray Train workers (train) or to Ray tasks (evaluate,
    predict, export); with ``ScalingConfig(num_workers=0)`` everything runs in the calling process instead. The first
    verb that needs Ray calls `ray.init()` if nobody has; Ray is never shut down.

    Args:
        model_fn: A function of a by-name subset, with `features`, of ``(features, labels, mode, params, config,
            model_dir)`` that builds the model in a v1 graph and returns an `EstimatorSpec`.
        model_dir: Where checkpoints and events go: a local path or any fsspec URL. On several nodes it must be one
            that all of them see. None: the config's, else a temporary local directory.
        config: How to run. None: the defaults, one worker.
        params: Hyperparameters, most often a dict; model_fn and input_fn get a copy.
        warm_start_from: Where an untrained model's variables start from: the path of a checkpoint, a model_dir or a
            SavedModel, or `WarmStartSettings`.

    A subclass may add methods and call ``super().__init__(model_fn=...)``; of these here it may override `model_fn`,
    `latest_checkpoint` and `experimental_export_all_saved_models`.

    Raises:
        ValueError: An argument is missing or contradicts another; a subclass overrides another member.
        TypeError: An argument is of the wrong kind.
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

    # What it holds

    @property
    def model_dir(self) -> str:
        """Where checkpoints are."""
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
        """The directory of the events of evaluations called `name`."""
        return self._job_builder.storage.join(self.model_dir, eval_dir_name(name))

    def latest_checkpoint(self) -> str | None:
        """The path of the newest whole checkpoint, without suffix; None if there is none."""
        newest = self._job_builder.store.latest()
        return None if newest is None else newest.path

    def get_variable_names(self) -> list[str]:
        """The names of all variables of the newest checkpoint, optimizer slots and global step included.

        Raises:
            EstimatorNotTrainedError: There is no checkpoint.
        """
        return self._of_variables(entrypoints.variable_names)

    def get_variable_value(self, name: str) -> Any:
        """The value of one variable of the newest checkpoint, a NumPy array.

        Raises:
            EstimatorNotTrainedError: There is no checkpoint.
            ValueError: There is no such variable.
        """
        return self._of_variables(entrypoints.variable_value, name)

    # The verbs

    def train(
        self,
        input_fn: InputFn,
        steps: int | None = None,
        hooks: Sequence[Any] | None = None,
        max_steps: int | None = None,
        *,
        saving_listeners: Sequence[Any] | None = None,
    ) -> Estimator:
        """Trains, from the newest checkpoint in model_dir if there is one.

        On each worker, in one process each, which all make the same steps:

            create the strategy; restore the newest checkpoint, or initialise
            hooks.begin(); save; hooks.after_create_session()
            until the target, the end of the input, or a hook's request to stop:
                hooks.before_run(); one step; save if it is time; hooks.after_run()
            save the last step; hooks.end()

        A worker that dies takes its group down; Ray Train starts the group again, which goes on from the newest
        checkpoint to the same last step. Errors of user code and NaN losses are not tried again.

        Ctrl-C and SIGTERM, heard in the main thread, stop all workers at the same step, publish its checkpoint, and are
        then raised; the next call goes on from there, a Ray Dataset with the very next row. What takes longer than
        `RunConfig.stop_timeout_secs`, or is interrupted a second time, ends at once, and leaves the checkpoint that was
        published last. (In tf.estimator an interrupt loses all steps since then.) A notice that a node is going away
        stops its workers in the same way, and they go on elsewhere without a failure being counted.

        Args:
            input_fn: `dataset_input_fn(...)`, or a function as tf.estimator takes it: it runs on every worker, under
                the graph, may take `mode`, `params`, `config` and `input_context`, and returns a `tf.data.Dataset` or
                ``(features, labels)``. Its batches are per replica. After a run that was cut off, by a kill or by an
                interrupt, a `tf.data.Dataset` goes on with the next batch on each of as many workers, if TensorFlow
                can save its iterator, and the pipeline is the same; else the log says that input_fn begins anew. (In
                tf.estimator it always does.) Files are told apart by their names: TFRecords go on by position.
            steps: How many more steps to make. None: until the input ends.
            hooks: `SessionRunHook`s, or zero-argument callables that make one on each worker after model_fn. They run
                on every rank; their copies do not come back.
            max_steps: The global step to end at; nothing happens if it is reached already. Excludes `steps`.
            saving_listeners: `CheckpointSaverListener`s, or callables that make one; they run on the chief.

        Returns:
            The Estimator itself.

        Raises:
            ValueError: Both `steps` and `max_steps`, or one that is not positive; a dataset without the columns.
            TypeError: Hooks or listeners of the wrong kind; a Ray Dataset that is not wrapped.
            ShippingError: User code that cannot travel to the workers.
            ModelDirInUseError: Another driver, or another thread of this one, trains in model_dir.
            ModelDirAccessError: model_dir cannot be used from here, or from where workers run.
            TrainingError: No place in the cluster, a step without end, or workers lost too often.
            NanLossDuringTrainingError: The loss was not a number (TensorFlow's own error).
            KeyboardInterrupt, SystemExit: A signal stopped training; the exit status for SIGTERM is 143.
        """
        run = self._training(input_fn, steps, hooks, max_steps, saving_listeners)
        if run is not None:
            run(Stop())
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
        """Evaluates a checkpoint on the input, to its end or for `steps` batches.

        A Ray Dataset fans out over Ray tasks by ranges of whole batches, whose metric states are merged before values
        are computed: the numbers are those of a single pass. Callable inputs and calls with hooks run as one task.

        Args:
            input_fn: As in `train`; `num_epochs=None` means one pass.
            steps: How many batches. None: all.
            hooks: `SessionRunHook`s, or callables that make one.
            checkpoint_path: The checkpoint to evaluate. None: the newest in model_dir that is whole.
            name: Events go to ``eval_<name>``.
            allow_untrained: Evaluate initial weights if there is no checkpoint.

        Returns:
            Every metric by name, as a Python or NumPy scalar or array; `loss`, the mean of the batches' losses; and
            `global_step`.

        Raises:
            EstimatorNotTrainedError: There is no checkpoint.
            CheckpointNotFoundError: `checkpoint_path` names none.
            CheckpointDamagedError: It names a damaged one; or model_dir has checkpoints, and none of them is whole.
            ValueError: `steps` is not positive; a metric is called `loss` or `global_step`.
        """
        check_argument_order(steps, hooks)
        check_input_fn(input_fn, ModeKeys.EVAL)
        check_positive("steps", steps)
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
        """Yields predictions in the order of the input.

        A generator: nothing happens, not even a check, before the first `next()`. Left early, it begins no more work.

        Args:
            input_fn: As in `train`; labels are not needed, and `num_epochs=None` means one pass.
            predict_keys: Names of the predictions to give, if they are a dict; unknown names among them are left out.
            hooks: `SessionRunHook`s, or callables that make one; the prediction then runs as one task.
            checkpoint_path: The checkpoint to use. None: the newest in model_dir that is whole.
            yield_single_examples: Yield rows; else whole batches as model_fn returned them.
            allow_untrained: Predict with initial weights if there is no checkpoint.

        Yields:
            For each row (or batch) an array, or a dict of arrays by prediction name.

        Raises:
            EstimatorNotTrainedError: There is no checkpoint.
            CheckpointNotFoundError, CheckpointDamagedError: As in `evaluate`.
            ValueError: Predictions of a batch differ in length, or `predict_keys` does not fit the predictions.
        """
        check_input_fn(input_fn, ModeKeys.PREDICT)
        hooks = checked_hooks(hooks)
        runtime = self._job_builder.runtime()
        keys = (predict_keys,) if isinstance(predict_keys, str) else predict_keys
        summary, number = Summary(self._job_builder.config), 0
        with contextlib.ExitStack() as stack:

            def begin(checkpoint: Checkpoint | None) -> tuple[Iterator[Any], Checkpoint | None]:
                job, rows = self._job_builder.prediction(runtime, input_fn, keys, hooks, checkpoint)
                batches = stack.enter_context(contextlib.closing(runtime.predict(job, rows, one_task=bool(hooks))))
                # The first batch shows that the checkpoint can be used.
                first = list(itertools.islice(batches, 1))
                stack.enter_context(self._job_builder.store.reading(checkpoint))
                return itertools.chain(first, batches), checkpoint

            batches, used = self._with_checkpoint(checkpoint_path, begin, allow_untrained=allow_untrained)
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
        """A lazy Ray Dataset of predictions, in the order of the input: what `write_parquet` and the like take.

        Nothing runs before the Dataset is used, and then in Ray Data's own tasks, with `task_resources`, in process
        too; errors come as Ray Data's. The checkpoint is chosen now, and must be there still when the Dataset is used.
        Batches have `batch_size` rows but for the last of a task. With `ray.data.DataContext.checkpoint_config` a job
        that was killed while it wrote goes on with the rows that it lacks, if `keep_columns` has the id column.

        Args:
            input_fn: `dataset_input_fn(...)`.
            predict_keys: As in `predict`.
            keep_columns: Columns of the input that stay beside the predictions.
            checkpoint_path: As in `predict`.

        Returns:
            A `ray.data.Dataset` with the kept columns, and a column for each prediction; if model_fn predicts no dict,
            the column is called `predictions`.

        Raises:
            TypeError: `input_fn` is not made by `dataset_input_fn`.
            EstimatorNotTrainedError: There is no checkpoint.
            CheckpointNotFoundError, CheckpointDamagedError: As in `evaluate`.
            ValueError: `keep_columns` has a name that the dataset has not.
        """
        if not isinstance(input_fn, DatasetInput):
            raise TypeError(
                f"predict_dataset expects dataset_input_fn(dataset, batch_size=...), given: {input_fn!r}. For other "
                "inputs use predict."
            )
        runtime = self._job_builder.cluster()
        keys = (predict_keys,) if isinstance(predict_keys, str) else predict_keys
        kept = tuple(dict.fromkeys([keep_columns] if isinstance(keep_columns, str) else keep_columns))

        def begin(checkpoint: Checkpoint | None) -> Any:
            job, rows = self._job_builder.prediction(runtime, input_fn, keys, (), checkpoint)
            if rows is None:
                raise AssertionError("A DatasetInput has rows.")
            names = rows.dataset.schema().names
            if missing := [name for name in kept if name not in names]:
                raise ValueError(f"keep_columns has {missing}, but the columns of the dataset are {names}.")
            return runtime.predicted_dataset(job, rows, kept)

        return self._with_checkpoint(checkpoint_path, begin)

    def export_savedmodel(
        self,
        export_dir_base: str | os.PathLike[str],
        serving_input_receiver_fn: Callable[[], Any],
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        checkpoint_path: str | None = None,
        strip_default_attrs: bool = False,
    ) -> str:
        """Exports the model of a checkpoint as a SavedModel for serving. Runs as one Ray task.

        Args:
            export_dir_base: Local path or URL; the export gets a directory of its own below, named by a timestamp.
            serving_input_receiver_fn: Makes a `ServingInputReceiver`, in the graph.
            assets_extra: Source path or URL by destination below ``assets.extra/``.
            as_text: Write the SavedModel's proto as text.
            checkpoint_path: The checkpoint to export. None: the newest in model_dir that is whole.
            strip_default_attrs: Leave out attributes that have their default value.

        Returns:
            The path or URL of the new directory.

        Raises:
            ValueError: No receiver function, no checkpoint, or a model_fn that the checkpoint does not fit.
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
        """As `export_savedmodel`, without attributes that have their default value, and in any mode.

        Args:
            export_dir_base: As there.
            serving_input_receiver_fn: As there; in TRAIN and EVAL it makes a `SupervisedInputReceiver`.
            assets_extra: As there.
            as_text: As there.
            checkpoint_path: As there.
            experimental_mode: The mode in which model_fn builds what is exported.

        Returns:
            The path or URL of the new directory.

        Raises:
            ValueError: As there; or the mode is unknown.
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
        """Exports a SavedModel with a MetaGraph for each mode in the map, and one set of variables.

        PREDICT gets the signatures of its `export_outputs`, under the tag ``serve``. TRAIN and EVAL, under the tags
        ``train`` and ``eval``, get one signature of that name with the loss, the predictions, and value and update of
        each metric; TRAIN's train_op is where TensorFlow's loaders look for it. The variables are those of the first
        mode in the order TRAIN, EVAL, PREDICT; the others must need no more.

        Args:
            export_dir_base: As in `export_savedmodel`.
            input_receiver_fn_map: By mode, a function that makes a `SupervisedInputReceiver` or, for PREDICT, a
                `ServingInputReceiver`.
            assets_extra: As in `export_savedmodel`.
            as_text: As there.
            checkpoint_path: As there.

        Returns:
            The path or URL of the new directory.

        Raises:
            ValueError: No mode, an unknown one, no checkpoint, or a model_fn that the checkpoint does not fit.
        """
        return self._export(export_dir_base, input_receiver_fn_map, assets_extra, as_text, checkpoint_path)

    # What the verbs share

    def _training(
        self, input_fn: InputFn, steps: int | None, hooks: Any, max_steps: int | None, saving_listeners: Any
    ) -> Callable[[Stop], None] | None:
        """A training run: checked and packed here, to be made wherever it is called; None if nothing is left to do.

        It ends when the `Stop` that it takes says so. In the main thread signals say so, too.
        """
        check_argument_order(steps, hooks)
        check_input_fn(input_fn, ModeKeys.TRAIN)
        check_positive("steps", steps)
        check_positive("max_steps", max_steps)
        if steps is not None and max_steps is not None:
            raise ValueError("Can not provide both steps and max_steps.")
        hooks = checked_hooks(hooks)
        listeners = checked_listeners(saving_listeners)
        start = self._start()
        if _is_done(start, max_steps):
            return None
        runtime = self._job_builder.runtime()
        others, _ = own_target(hooks, 0)
        job_of, rows = self._job_builder.training(runtime, input_fn, start, others, listeners)

        def run(stop: Stop) -> None:
            summary = Summary(self._job_builder.config)
            runtime.check_model_dir()
            with hold(self.model_dir, self._job_builder.storage, on_loss=stop.end_at_once) as lease:
                # Only now nobody else trains here.
                start = self._start()
                if _is_done(start, max_steps):
                    return
                first_step = _step_of(start)
                _, own_last_step = own_target(hooks, first_step)
                last_step = last_step_of(first_step, steps, max_steps, own_last_step)
                read = self._job_builder.going_on(rows, start, lease.generation)
                source = None if read is None else read.source
                job = job_of(first_step=first_step, last_step=last_step, generation=lease.generation, source=source)
                # Only now, since connecting to Ray sets a handler, too.
                with stopped_by_signals(stop):
                    result = runtime.train(job, read, stop)
                    if stop.why is not None:
                        self._say_stopped(stop.why, result.step)
            if result.step == first_step and stop.why is None:
                logger.warning("Training with estimator made no steps. Perhaps input is empty or misspecified.")
            logger.info("Loss for final step: %s.", result.loss)
            summary.trained(result, first_step)

        return run

    def _say_stopped(self, why: str, step: int) -> None:
        newest = self._job_builder.store.latest()
        saved = "no checkpoint is published" if newest is None else f"the checkpoint of step {newest.step} is published"
        logger.warning("%s: stopped at step %d; %s. Call train again to go on.", why, step, saved)

    def _start(self) -> Checkpoint | None:
        """What training goes on from."""
        try:
            return self._job_builder.store.start()
        except RayEstimatorError:
            raise
        except Exception:
            self._job_builder.runtime().check_model_dir()  # Where this raises, it says more.
            raise

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

    def _of_variables(self, ask: Callable[..., T], *args: Any) -> T:
        """What `ask` finds among the variables of the newest checkpoint."""
        program = self._job_builder

        def run(checkpoint: Checkpoint | None) -> T:
            if checkpoint is None:
                raise EstimatorNotTrainedError(self.model_dir)
            return program.runtime().run(ask, self.model_dir, program.config, checkpoint, *args)

        return self._with_checkpoint(None, run)

    def _with_checkpoint(
        self, checkpoint_path: str | None, use: Callable[[Checkpoint | None], T], *, allow_untrained: bool = False
    ) -> T:
        """What `use` returns for the checkpoint that a caller names, else for the newest; None means initial weights.

        Its files stay meanwhile. If the newest proves damaged, `use` is called again with the one before.
        """
        store = self._job_builder.store
        if checkpoint_path is None and type(self).latest_checkpoint is not Estimator.latest_checkpoint:
            checkpoint_path = self.latest_checkpoint()  # A subclass names one.
        if checkpoint_path is not None:
            named = store.find(os.fsdecode(checkpoint_path))
            with store.reading(named):
                return use(named)

        def use_newest(newest: Checkpoint | None) -> T:
            if newest is None and not allow_untrained and self._job_builder.warm_start is None:
                raise EstimatorNotTrainedError(self.model_dir)
            return use(newest)

        return store.with_newest(use_newest)


def check_estimator(estimator: Any) -> None:
    """Refuses what is no Estimator, with a TypeError."""
    if not isinstance(estimator, Estimator):
        raise TypeError(f"`estimator` must have type ray_estimator.Estimator, given: {estimator!r}.")


def _required(input_receiver_fn: Any) -> Any:
    if input_receiver_fn is None:
        raise ValueError("An input_receiver_fn must be defined.")
    return input_receiver_fn


def _refuse_overrides(kind: type[Estimator]) -> None:
    """As tf.estimator, which users know to be changed by its model_fn alone."""
    own = {name for name in vars(Estimator) if not name.startswith("__")} - _MAY_BE_OVERRIDDEN
    overridden = sorted(name for name in own if getattr(kind, name) is not getattr(Estimator, name))
    if overridden:
        raise ValueError(
            f"Subclasses of Estimator cannot override members of Estimator. {kind} does override {overridden}: give "
            "them other names, and change the model in model_fn."
        )


def _step_of(start: Checkpoint | None) -> int:
    return 0 if start is None else start.step


def _is_done(start: Checkpoint | None, max_steps: int | None) -> bool:
    if max_steps is None or _step_of(start) < max_steps:
        return False
    logger.info("Skipping training since max_steps has already saved.")
    return True
