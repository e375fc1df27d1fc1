"""Run tf.estimator model_fns on current TensorFlow, distributed with Ray.

The public surface:

    estimator.py       Estimator: train, evaluate, predict, export
    training.py        train_and_evaluate, TrainSpec, EvalSpec
    exporters.py       LatestExporter, BestExporter, FinalExporter
    extenders.py       add_metrics
    experimental/      early stopping, in-memory evaluation, call_logit_fn
    trackers.py        MLflow hook
    config.py          RunConfig
    spec.py            EstimatorSpec, ModeKeys
    inputs.py          dataset_input_fn, numpy_input_fn, pandas_input_fn
    export.py          receivers, their builders, export outputs
    hooks.py           the names of TensorFlow's hooks
    warm_start.py      WarmStartSettings, VocabInfo
    errors.py          the error classes

Private packages and modules, from the top of the imports to the bottom:

    cli/               the commands of `ray-estimator`
    _driver/           from an Estimator and a verb to a job; one training run
    _runtime/          execution of jobs on Ray or in this process; does not import TensorFlow
    _engine/           graphs and sessions of workers and tasks; does not import Ray
    _reporting/        progress display and summary lines
    _jobs/             jobs, serialized user code, results, errors
    _checkpoints/      checkpoints in model_dir, and the lease of its writer
    _validation/       checks of arguments on the driver
    _storage/          files by URL on any fsspec store, staging, SavedModels
    _data/             blocks of a Ray Dataset to arrays of a rank
    _compat/           the names of tf.estimator, restored by `install()`
    _process/          signals, process identity, heartbeat
    _numbers.py        the check of positive numbers
    _tf_private/       private names of TensorFlow and Keras

Importing the package imports neither TensorFlow nor Ray.
"""

from typing import Any as _Any

from ray_estimator import errors, experimental, export, hooks, inputs, trackers
from ray_estimator._compat.install import install
from ray_estimator._process.quiet import quiet_tensorflow
from ray_estimator._storage.staging import stage
from ray_estimator.config import RunConfig
from ray_estimator.errors import (
    CheckpointDamagedError,
    CheckpointNotFoundError,
    EstimatorNotTrainedError,
    InputChangedError,
    InputEndedError,
    InputTimeoutError,
    ModelDirAccessError,
    ModelDirInUseError,
    ModuleNotShippedError,
    RanksDisagreeError,
    RayEstimatorError,
    ResourcesTimeoutError,
    ShippingError,
    StepTimeoutError,
    TaskLostError,
    TaskTimeoutError,
    TrainingError,
    WorkersLostError,
    WriterFencedError,
)
from ray_estimator.estimator import Estimator
from ray_estimator.export import ServingInputReceiver, SupervisedInputReceiver, TensorServingInputReceiver
from ray_estimator.exporters import BestExporter, Exporter, FinalExporter, LatestExporter
from ray_estimator.extenders import add_metrics
from ray_estimator.inputs import DatasetInput, dataset_input_fn
from ray_estimator.spec import EstimatorSpec, ModeKeys
from ray_estimator.training import EvalSpec, TrainSpec, train_and_evaluate
from ray_estimator.warm_start import VocabInfo, WarmStartSettings

__all__ = [
    "BestExporter",
    "CheckpointDamagedError",
    "CheckpointNotFoundError",
    "DatasetInput",
    "Estimator",
    "EstimatorNotTrainedError",
    "EstimatorSpec",
    "EvalSpec",
    "Exporter",
    "FinalExporter",
    "InputChangedError",
    "InputEndedError",
    "InputTimeoutError",
    "LatestExporter",
    "ModeKeys",
    "ModelDirAccessError",
    "ModelDirInUseError",
    "ModuleNotShippedError",
    "RanksDisagreeError",
    "RayEstimatorError",
    "ResourcesTimeoutError",
    "RunConfig",
    "ServingInputReceiver",
    "ShippingError",
    "StepTimeoutError",
    "SupervisedInputReceiver",
    "TaskLostError",
    "TaskTimeoutError",
    "TensorServingInputReceiver",
    "TrainSpec",
    "TrainingError",
    "VocabInfo",
    "WarmStartSettings",
    "WorkersLostError",
    "WriterFencedError",
    "add_metrics",
    "dataset_input_fn",
    "errors",
    "experimental",
    "export",
    "hooks",
    "inputs",
    "install",
    "quiet_tensorflow",
    "stage",
    "trackers",
    "train_and_evaluate",
]


def __getattr__(name: str) -> _Any:
    if name not in hooks.NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(hooks, name)
