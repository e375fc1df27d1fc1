"""Exporters of `train_and_evaluate`. They run on the driver."""

from __future__ import annotations

import abc
import logging
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any

from ray_estimator._checkpoints.event_files import EVENT_FILES, eval_dir_name
from ray_estimator._engine import entrypoints
from ray_estimator._numbers import check_number
from ray_estimator._storage.saved_model import remove as remove_saved_model
from ray_estimator._storage.storage import Storage
from ray_estimator._validation.user_functions import accepted_arguments
from ray_estimator.estimator import Estimator, job_builder_of

Metrics = Mapping[str, Any]
CompareFn = Callable[..., bool]

_COMPARE_FN_ARGUMENTS = ("best_eval_result", "current_eval_result")
_TIMESTAMP = re.compile(r"\d{10}")

logger = logging.getLogger(__name__)


class Exporter(abc.ABC):
    """A function of `train_and_evaluate` that is called after each evaluation, on the driver. Subclass it."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Name of the exporter and of its directory below ``<model_dir>/export``. Unique in an `EvalSpec`."""

    @abc.abstractmethod
    def export(
        self,
        estimator: Estimator,
        export_path: str,
        checkpoint_path: str,
        eval_result: Metrics,
        is_the_final_export: bool,
    ) -> Any:
        """Export the checkpoint, or do nothing.

        Args:
            estimator: The Estimator that trains.
            export_path: Directory of the exports, path or URL: ``<model_dir>/export/<name>``.
            checkpoint_path: The checkpoint that was evaluated.
            eval_result: The result of `Estimator.evaluate` for it.
            is_the_final_export: Whether `TrainSpec.max_steps` is reached. Always False without `max_steps`.

        Returns:
            The path or URL of the export; None if there is none.
        """


class LatestExporter(Exporter):
    """An exporter that exports a SavedModel after every evaluation and deletes old exports.

    Args:
        name: Name of the exporter.
        serving_input_receiver_fn: As in `Estimator.export_saved_model`.
        assets_extra: As in `Estimator.export_saved_model`.
        as_text: As in `Estimator.export_saved_model`.
        exports_to_keep: Number of newest exports to keep. None: all.

    Raises:
        ValueError: `exports_to_keep` is not positive.
    """

    def __init__(
        self,
        name: str,
        serving_input_receiver_fn: Callable[[], Any],
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        exports_to_keep: int | None = 5,
    ) -> None:
        _check_exports_to_keep(exports_to_keep)
        self._saved_model = _SavedModel(name, serving_input_receiver_fn, assets_extra, as_text)
        self._exports_to_keep = exports_to_keep

    @property
    def name(self) -> str:
        """Name of the exporter."""
        return self._saved_model.name

    def export(
        self,
        estimator: Estimator,
        export_path: str,
        checkpoint_path: str,
        eval_result: Metrics,
        is_the_final_export: bool,
    ) -> str:
        """Export the checkpoint."""
        path = self._saved_model.export(estimator, export_path, checkpoint_path)
        _delete_old_exports(_storage_of(estimator), export_path, self._exports_to_keep)
        return path


class FinalExporter(Exporter):
    """An exporter that exports a SavedModel once, after the evaluation at `TrainSpec.max_steps`.

    Args:
        name: Name of the exporter.
        serving_input_receiver_fn: As in `Estimator.export_saved_model`.
        assets_extra: As in `Estimator.export_saved_model`.
        as_text: As in `Estimator.export_saved_model`.
    """

    def __init__(
        self,
        name: str,
        serving_input_receiver_fn: Callable[[], Any],
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
    ) -> None:
        self._saved_model = _SavedModel(name, serving_input_receiver_fn, assets_extra, as_text)

    @property
    def name(self) -> str:
        """Name of the exporter."""
        return self._saved_model.name

    def export(
        self,
        estimator: Estimator,
        export_path: str,
        checkpoint_path: str,
        eval_result: Metrics,
        is_the_final_export: bool,
    ) -> str | None:
        """Export the checkpoint if it is the last one."""
        if not is_the_final_export:
            return None
        logger.info("Performing the final export in the end of training.")
        return self._saved_model.export(estimator, export_path, checkpoint_path)


def _loss_smaller(best_eval_result: Metrics, current_eval_result: Metrics) -> bool:
    for name, result in zip(_COMPARE_FN_ARGUMENTS, (best_eval_result, current_eval_result), strict=True):
        if not result or "loss" not in result:
            raise ValueError(
                f"{name} cannot be empty or no loss is found in it, got {result!r}. Pass a compare_fn that compares "
                "another metric."
            )
    return bool(best_eval_result["loss"] > current_eval_result["loss"])


class BestExporter(Exporter):
    """An exporter that exports a SavedModel after each evaluation that is better than all evaluations before.

    The best result survives a restart: it is read from the event files of earlier evaluations, once for each model_dir.
    After a restart, unlike in tf.estimator, it never exports a worse model than it has exported before. If there is no
    export yet, the next evaluated checkpoint is exported.

    Args:
        name: Name of the exporter.
        serving_input_receiver_fn: As in `Estimator.export_saved_model`.
        event_file_pattern: Glob of the event files of the evaluations, relative to model_dir. With
            `EvalSpec(name="test")` it is ``eval_test/*.tfevents.*``. None: ignore results of earlier processes.
        compare_fn: Function ``(best_eval_result, current_eval_result)`` that returns whether the current result is
            better. Results from event files hold only numbers.
        assets_extra: As in `Estimator.export_saved_model`.
        as_text: As in `Estimator.export_saved_model`.
        exports_to_keep: Number of newest exports to keep. None: all.

    Raises:
        ValueError: `compare_fn` is None or has other arguments, or `exports_to_keep` is not positive. During export:
            there is no `loss` to compare.
    """

    def __init__(
        self,
        name: str = "best_exporter",
        serving_input_receiver_fn: Callable[[], Any] | None = None,
        event_file_pattern: str | None = f"{eval_dir_name()}/{EVENT_FILES}",
        compare_fn: CompareFn = _loss_smaller,
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        exports_to_keep: int | None = 5,
    ) -> None:
        _check_compare_fn(compare_fn)
        _check_exports_to_keep(exports_to_keep)
        self._saved_model = _SavedModel(name, serving_input_receiver_fn, assets_extra, as_text)
        self._event_file_pattern = event_file_pattern
        self._compare_fn = compare_fn
        self._exports_to_keep = exports_to_keep
        self._model_dir: str | None = None
        self._best: Metrics | None = None

    @property
    def name(self) -> str:
        """Name of the exporter."""
        return self._saved_model.name

    def export(
        self,
        estimator: Estimator,
        export_path: str,
        checkpoint_path: str,
        eval_result: Metrics,
        is_the_final_export: bool,
    ) -> str | None:
        """Export the checkpoint if its result is the best one."""
        if self._model_dir != estimator.model_dir:
            self._best = self._best_before(estimator, export_path, eval_result)
            self._model_dir = estimator.model_dir
        if self._best is not None and not self._is_better(eval_result, self._best):
            return None
        logger.info("Performing best model export.")
        path = self._saved_model.export(estimator, export_path, checkpoint_path)
        self._best = eval_result
        _delete_old_exports(_storage_of(estimator), export_path, self._exports_to_keep)
        return path

    def _is_better(self, current: Metrics, best: Metrics) -> bool:
        return bool(self._compare_fn(best_eval_result=best, current_eval_result=current))

    def _best_before(self, estimator: Estimator, export_path: str, current: Metrics) -> Metrics | None:
        """Return the best result of earlier processes; None if they exported nothing."""
        storage = _storage_of(estimator)
        if self._event_file_pattern is None or not _exports(storage, export_path):
            return None
        logger.info("Loading best metric from event files.")
        found = (
            job_builder_of(estimator)
            .runtime()
            .run(entrypoints.event_scalars, storage, estimator.model_dir, self._event_file_pattern)
        )
        numbers_now = {name for name, value in current.items() if isinstance(value, numbers.Real)}
        best: Metrics | None = None
        for step, metrics in found.items():
            result = {**metrics, "global_step": step}
            # The files hold the current result too, and results of older code that may lack a metric.
            if step == current.get("global_step") or not numbers_now <= result.keys():
                continue
            if best is None or self._is_better(result, best):
                best = result
        return best


class _SavedModel:
    """The arguments of a SavedModel export."""

    def __init__(
        self, name: str, receiver_fn: Callable[[], Any] | None, assets_extra: Mapping[str, str] | None, as_text: bool
    ) -> None:
        self.name = name
        self._receiver_fn = receiver_fn
        self._assets_extra = assets_extra
        self._as_text = as_text

    def export(self, estimator: Estimator, export_path: str, checkpoint_path: str) -> str:
        return estimator.export_saved_model(
            export_path,
            self._receiver_fn,  # type: ignore[arg-type]  # export_saved_model checks it
            assets_extra=self._assets_extra,
            as_text=self._as_text,
            checkpoint_path=checkpoint_path,
        )


def _storage_of(estimator: Estimator) -> Storage:
    return Storage(estimator.config.storage_options)


def _exports(storage: Storage, export_path: str) -> list[str]:
    """Return the names of the exports, oldest first. They are timestamps of ten digits."""
    return [name for name in storage.list_dir(export_path) if _TIMESTAMP.fullmatch(name)]


def _delete_old_exports(storage: Storage, export_path: str, to_keep: int | None) -> None:
    if to_keep is None:
        return
    for name in _exports(storage, export_path)[:-to_keep]:
        url = storage.join(export_path, name)
        try:
            remove_saved_model(storage, url)
        except Exception as error:  # Any error of any store. Training continues.
            logger.warning("Could not delete the old export %s: %s", url, error)


def _check_exports_to_keep(exports_to_keep: int | None) -> None:
    requirement = "`exports_to_keep`, if provided, must be a positive number"
    check_number("exports_to_keep", exports_to_keep, integer=True, or_none=" or None", requirement=requirement)


def _check_compare_fn(compare_fn: Any) -> None:
    if compare_fn is None:
        raise ValueError("`compare_fn` must not be None. Omit it to compare losses.")
    accepted = set(accepted_arguments(compare_fn))
    for name in _COMPARE_FN_ARGUMENTS:
        if name not in accepted:
            raise ValueError(f"compare_fn ({compare_fn}) must include {name} argument.")
    unknown = sorted(accepted - set(_COMPARE_FN_ARGUMENTS))
    if unknown:
        raise ValueError(f"compare_fn ({compare_fn}) has following not expected args: {unknown}.")
