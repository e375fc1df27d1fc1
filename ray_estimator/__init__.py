"""The Estimator for today: one model_fn from a driver to Ray Train workers and back.

    estimator.py       Estimator: train, evaluate, predict, export                   the driver
    training.py        train_and_evaluate, TrainSpec, EvalSpec                       one run, evaluated on its way
    exporters.py       LatestExporter, BestExporter, FinalExporter                   what to export after evaluations
    early_stopping.py in_memory.py hooks.py extenders.py                             hooks; add_metrics
    experimental.py    tf.estimator's group of that name
    trackers.py        MLflow
    config.py          RunConfig                                                     what to run on
    spec.py            EstimatorSpec, ModeKeys                                       what model_fn returns
    inputs.py          dataset_input_fn, numpy_input_fn, pandas_input_fn             what to read
    export.py          receivers, their builders, export outputs                     what to serve
    errors.py          the errors, drawn as a tree
    warm_start.py      WarmStartSettings, VocabInfo                                  what to start from
    _install.py _tf_estimator.py   the names of tf.estimator, put back by install()

    _program.py        what an Estimator is made of, and how a verb becomes a job
    _progress.py _summary.py   what a person sees
    _jobs.py           what travels: frozen values
    _beats.py          that a process goes on
    _quiet.py          TensorFlow, imported without its chatter
    _shipping.py       user code as opaque bytes
    _runtime/          where work runs: on Ray, or in this process                   knows no TensorFlow
    _entry.py          what each process runs
    _engine/           graphs and sessions                                           starts no Ray job
    _rows.py _columns.py     from blocks of a Ray Dataset to a rank's arrays
    _position.py       where in its input a run is: kept with each checkpoint
    _publishing.py     saves on their way to the store, beside training
    _checkpoints.py    what is published in a model_dir
        _state_file.py _ledger.py _manifest.py _checkpoint_files.py    which, and of which bytes
        _marks.py _node_copies.py _scratch.py                          who needs which files, for how long
    _exports.py _staging.py    SavedModels, and files that user code names by URL
    _lease.py _preflight.py    who may write in model_dir, and whether it can be used
    _storage.py        files by URL, on any fsspec store
        _local_files.py _remote_files.py _retrying.py
    cli/               the commands of `ray-estimator`

Importing the package imports neither TensorFlow nor Ray.
"""

from typing import Any as _Any

from ray_estimator import errors, experimental, export, hooks, inputs, trackers
from ray_estimator._install import install
from ray_estimator._quiet import quiet_tensorflow
from ray_estimator._staging import stage
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
