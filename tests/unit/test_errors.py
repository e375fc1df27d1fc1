"""The error classes: each is documented, exported, and can be pickled."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Iterator

import pytest

import ray_estimator
from ray_estimator import errors
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

ONE_OF_EACH = [
    RayEstimatorError("something"),
    EstimatorNotTrainedError("/models/a"),
    CheckpointDamagedError("/models/a/model.ckpt-7", "it is damaged: model.ckpt-7.index has 5 bytes instead of 9."),
    CheckpointNotFoundError("/models/a/model.ckpt-7", "there are no files /models/a/model.ckpt-7.*."),
    ShippingError("hooks[0]", "it holds a lock."),
    ModuleNotShippedError("model_fn", "mine.models"),
    TaskLostError("The prediction of rows 0 to 99", 8, "WorkerCrashedError"),
    TaskTimeoutError("The prediction of rows 0 to 99", 2, 1200.0),
    TrainingError("something"),
    ModelDirInUseError("s3://b/run", "host-3", 4711, 1_700_000_000),
    ModelDirAccessError("s3://b/run", "the driver", "writing s3://b/run/x failed: PermissionError: no"),
    WriterFencedError("s3://b/run", "process 12 on host-4"),
    ResourcesTimeoutError([{"CPU": 4.0}, {"CPU": 4.0}], {"CPU": 2.0}, {"CPU": 1.0}, 30.0),
    StepTimeoutError(12, 60.0, {0: "in a step", 2: "in a step"}, {1: 61.5}),
    InputTimeoutError("Ray Data", 45.0),
    InputEndedError(3),
    InputChangedError(1200, {"files": ("3 files, ab", "4 files, cd")}),
    RanksDisagreeError("rank 0 has 'variable a' where rank 1 has 'variable b'"),
    WorkersLostError(3, "rank 1 was killed"),
]


def every_class(root: type[RayEstimatorError] = RayEstimatorError) -> Iterator[type[RayEstimatorError]]:
    yield root
    for below in root.__subclasses__():
        if below.__module__.startswith("ray_estimator"):
            yield from every_class(below)


def test_there_is_an_example_of_each_class() -> None:
    assert {type(error) for error in ONE_OF_EACH} == set(every_class())


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickle_with_its_message_and_attributes(error: RayEstimatorError) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (EstimatorNotTrainedError("/models/a"), ["Could not find trained model in model_dir: /models/a.", "train()"]),
        (CheckpointNotFoundError("/m/model.ckpt-7", "it is torn."), ["checkpoint_path /m/model.ckpt-7: it is torn."]),
        (ShippingError("hooks[0]", "it holds a lock."), ["hooks[0]", "it holds a lock."]),
        (ModuleNotShippedError("model_fn", "mine.models"), ["'mine.models'", "working_dir", "py_modules", "(mine)"]),
        (
            ResourcesTimeoutError([{"CPU": 4.0}] * 2, {"CPU": 2.0}, {"CPU": 1.0}, 30.0),
            ["2 worker(s) of {'CPU': 4.0}", "start_timeout_secs=30", "{'CPU': 2.0}", "{'CPU': 1.0} is free"],
        ),
        (
            ResourcesTimeoutError([{"GPU": 1.0}], {"CPU": 2.0}, {"CPU": 2.0}, 30.0, "task_resources"),
            ["1 task(s) of {'GPU': 1.0}", "RunConfig(task_resources=...)"],
        ),
        (
            TaskLostError("The prediction of rows 0 to 99", 8, "OutOfMemoryError"),
            ["The prediction of rows 0 to 99 lost its worker 8 times", "OutOfMemoryError", "task_resources", "memory"],
        ),
        (
            TaskTimeoutError("The prediction of rows 0 to 99", 2, 1200.0),
            [
                "The prediction of rows 0 to 99 made no progress for 1200 s and was killed (2 attempts)",
                "step_timeout_secs",
            ],
        ),
        (
            ModelDirInUseError("s3://b/run", "host-3", 4711, 1_700_000_000),
            [
                "s3://b/run is in use",
                "process 4711 on host host-3",
                "since 2023-11-14 22:13:20+00:00",
                "another model_dir",
            ],
        ),
        (
            ModelDirAccessError.not_shared("/mnt/run", "a worker on node 10.0.0.2"),
            ["/mnt/run cannot be used from a worker on node 10.0.0.2", "not visible here", "all nodes share"],
        ),
        (WriterFencedError("s3://b/run", "process 12 on host-4"), ["s3://b/run", "taken over by process 12 on host-4"]),
        (
            StepTimeoutError(12, 60.0, {2: "in a step", 0: "saving"}, {1: 61.5}),
            ["step_timeout_secs=60 after global step 12", "rank 0: saving; rank 2: in a step", "rank 1 for 62 s"],
        ),
        (InputTimeoutError("Ray Data", 45.0), ["Ray Data returned no data within input_timeout_secs=45"]),
        (
            InputChangedError(1200, {"files": ("3 files, ab", "4 files, cd")}),
            ["1,200 rows", "files: was 3 files, ab, is 4 files, cd", "resume='restart'", "resume='rows'"],
        ),
        (InputEndedError(3), ["rank 3", "tf.data.Dataset"]),
        (RanksDisagreeError("a is not b"), ["different graphs: a is not b"]),
        (WorkersLostError(3, "rank 1 was killed"), ["failure_config.max_failures=3", "rank 1 was killed"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_message_has_the_problem_and_the_fix(error: RayEstimatorError, parts: list[str]) -> None:
    for part in parts:
        assert part in str(error)


def test_a_step_timeout_tells_waiting_ranks_from_unresponsive_ones() -> None:
    assert "Waiting ranks: none. Ranks that do not respond: rank 0 for 5 s." in str(StepTimeoutError(1, 5, {}, {0: 5}))


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (EstimatorNotTrainedError, ValueError),
        (CheckpointNotFoundError, ValueError),
        (CheckpointDamagedError, CheckpointNotFoundError),
        (ShippingError, TypeError),
        (ModuleNotShippedError, TypeError),
        (TrainingError, RuntimeError),
    ],
)
def test_errors_extend_a_builtin_error(kind: type[RayEstimatorError], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)


def test_the_tree_in_the_docstring_lists_each_class_once() -> None:
    drawing = (errors.__doc__ or "").partition("\n\n")[2].partition("\n\n")[0]

    assert sorted(re.findall(r"\b[A-Z]\w+Error\b(?!\))", drawing)) == sorted(kind.__name__ for kind in every_class())


def test_the_tree_names_the_builtin_that_a_class_extends() -> None:
    drawing = errors.__doc__ or ""

    for kind in every_class():
        own_bases = [base.__name__ for base in kind.__bases__ if not issubclass(base, RayEstimatorError)]
        if kind is not RayEstimatorError and own_bases:
            assert f"{kind.__name__} ({own_bases[0]})" in drawing


def test_each_class_is_defined_in_one_module_and_public_at_the_root() -> None:
    for kind in every_class():
        assert inspect.getmodule(kind) is errors
        assert getattr(ray_estimator, kind.__name__) is kind
