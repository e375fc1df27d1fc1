"""`install()`: the supported names of tf.estimator, what they resolve to, and the errors of unsupported ones.

Each test has a process of its own: what is installed stays. Where TensorFlow may be imported first, the process is a
fork of one that has imported it.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.two_processes import output_of

WITHOUT_PACKAGE = """
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *where: (
    None if name.startswith("tensorflow_estimator") else find(name, *where)
)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def errors(statements: tuple[str, ...], *, without_package: bool = False) -> dict[str, str]:
    """Return the error message of each statement, from one process with the names installed."""
    code = f"""
{WITHOUT_PACKAGE if without_package else ""}
import json, ray_estimator
ray_estimator.install()
import tensorflow as tf
said = {{}}
for statement in {statements!r}:
    try:
        exec(statement)
    except (AttributeError, ImportError) as error:
        said[statement] = str(error)
print(json.dumps(said))
"""
    in_a_process = run if without_package else output_of
    said: dict[str, str] = json.loads(in_a_process(code))
    assert set(said) == set(statements), "some did not fail"
    return said


def test_install_imports_neither_tensorflow_nor_ray() -> None:
    code = "import sys, ray_estimator; ray_estimator.install(); print({'tensorflow', 'ray'} & set(sys.modules))"
    assert run(code) == "set()"


@pytest.mark.parametrize("imported", ["before", "after"])
def test_every_path_of_estimator_resolves_to_this_package(imported: str) -> None:
    tensorflow = "import tensorflow as tf, tensorflow.compat.v1 as v1\n"
    install = "import ray_estimator\nray_estimator.install()\nray_estimator.install()\n"
    ways = """
from tensorflow import estimator as a
from tensorflow.compat.v1 import estimator as b
from tensorflow_estimator import estimator as c
import tensorflow.estimator
import tensorflow.compat.v1.estimator
import tensorflow_estimator
import tensorflow_estimator.python.estimator.estimator as d
from tensorflow.python.estimator import estimator as e
for names in (tf.estimator, tf.compat.v1.estimator, v1.estimator, tf.compat.v2.estimator, a, b, c, d, e):
    assert names.Estimator is ray_estimator.Estimator, names
assert tensorflow_estimator.estimator is c
assert a is tf.estimator
print("all")
"""
    parts = [tensorflow, install] if imported == "before" else [install, tensorflow]
    in_a_process = output_of if imported == "before" else run
    assert in_a_process("".join([*parts, ways])) == "all"


@pytest.mark.parametrize(
    "statement",
    [
        "from tensorflow import estimator",
        "from tensorflow.compat.v1 import estimator",
        "from tensorflow_estimator import estimator",
        "import tensorflow.compat.v1 as tf; estimator = tf.estimator",
    ],
)
def test_each_form_works_as_the_first_import(statement: str) -> None:
    code = f"""
import ray_estimator
ray_estimator.install()
{statement}
print(estimator.EstimatorSpec.__module__, estimator.export.ServingInputReceiver.__module__)
"""
    assert run(code) == "ray_estimator.spec ray_estimator.export"


def test_core_names_are_those_of_the_package_or_of_tensorflow() -> None:
    code = """
import ray_estimator
ray_estimator.install()
import tensorflow as tf
for name in ("Estimator", "EstimatorSpec", "ModeKeys", "RunConfig", "WarmStartSettings"):
    assert getattr(tf.estimator, name) is getattr(ray_estimator, name), name
for name in ("SessionRunHook", "StopAtStepHook", "LoggingTensorHook", "CheckpointSaverListener", "NanTensorHook"):
    assert getattr(tf.estimator, name) is getattr(tf.compat.v1.train, name), name
for name in ("PredictOutput", "ClassificationOutput", "ServingInputReceiver", "build_raw_serving_input_receiver_fn"):
    assert getattr(tf.estimator.export, name) is getattr(ray_estimator.export, name), name
name = "build_raw_supervised_input_receiver_fn"
assert getattr(tf.estimator.experimental, name) is getattr(ray_estimator.export, name)
assert {"Estimator", "DNNClassifier", "export", "inputs"} <= set(dir(tf.estimator))
print("all")
"""
    assert output_of(code) == "all"


def test_tensorflow_and_its_estimator_behave_as_modules() -> None:
    code = """
import ray_estimator
ray_estimator.install()
import importlib.resources, inspect, pickle, tensorflow as tf
from ray import cloudpickle
assert not hasattr(tf.estimator, "NoSuchName")
assert inspect.getmodule(len).__name__ == "builtins"
assert pickle.loads(cloudpickle.dumps(tf.estimator)) is tf.estimator
assert tf.__spec__.loader.get_source("tensorflow")
print((importlib.resources.files("tensorflow") / "__init__.py").is_file())
"""
    assert run(code) == "True"


def test_every_public_name_of_tf_estimator_except_those_of_tpus_is_supported() -> None:
    """The names are the public ones of tensorflow-estimator 2.15."""
    code = """
import ast, pathlib, ray_estimator
ray_estimator.install()
import tensorflow as tf
from ray_estimator._compat.names import package_path
(folder,) = package_path()
found, missing = 0, set()
for version, ours in (("v1", tf.compat.v1.estimator), ("v2", tf.estimator)):
    for group in (".", "experimental", "export", "inputs", "tpu"):
        listing = pathlib.Path(folder, "_api", version, "estimator", group, "__init__.py")
        if not listing.exists():
            continue
        names = ours if group == "." else getattr(ours, group)
        imports = [node for node in ast.parse(listing.read_text()).body if isinstance(node, ast.ImportFrom)]
        for name in (alias.asname or alias.name for node in imports for alias in node.names):
            if name.startswith("_") or name in ("absolute_import", "division", "print_function"):
                continue
            found += 1
            try:
                getattr(names, name)
            except AttributeError as error:
                assert "TPUs are not supported" in str(error), error
                missing.add(f"{group}.{name}")
print(found > 130, sorted(missing))
"""
    tpu = ("InputPipelineConfig", "RunConfig", "TPUConfig", "TPUEstimator", "TPUEstimatorSpec", "experimental")
    assert output_of(code) == f"True {[f'tpu.{name}' for name in tpu]}"


def test_every_name_resolves() -> None:
    code = """
import importlib, ray_estimator
ray_estimator.install()
from ray_estimator._compat import names
lost, found = [], 0
modules = [*names._ROOTS, *(f"{root}.{group}" for root in names._ROOTS for group in names.GROUPS)]
for module in [*modules, *(f"tensorflow.python.estimator.{below}" for below in names._REPLACED)]:
    imported = importlib.import_module(module)
    assert isinstance(imported, names.Names), module
    for name in imported._table:
        found += 1
        try:
            getattr(imported, name)
        except Exception as error:
            lost.append(f"{module}.{name}: {error!r}")
print(found > 500, lost)
"""
    assert output_of(code) == "True []"


def test_private_modules_that_programs_import_are_supported() -> None:
    code = """
import ray_estimator
ray_estimator.install()
from tensorflow.python.estimator import model_fn, run_config
from tensorflow.python.estimator.canned import head, metric_keys, optimizers, prediction_keys
from tensorflow_estimator.python.estimator.canned import head as same_head
from tensorflow_estimator.python.estimator import estimator
assert head is same_head
assert run_config.RunConfig is ray_estimator.RunConfig
assert estimator.EstimatorV2 is ray_estimator.Estimator
print(head.__name__, model_fn.EstimatorSpec.__name__, metric_keys.MetricKeys.AUC)
"""
    assert output_of(code) == "tensorflow_estimator.python.estimator.canned.head EstimatorSpec auc"


def test_core_names_do_not_need_tensorflow_estimator() -> None:
    code = f"""
{WITHOUT_PACKAGE}
import ray_estimator
ray_estimator.install()
from tensorflow_estimator import estimator
from tensorflow.python.estimator import model_fn
from tensorflow.python.estimator.run_config import RunConfig
import tensorflow.compat.v1 as tf
assert estimator.Estimator is tf.estimator.Estimator is ray_estimator.Estimator
assert model_fn.EstimatorSpec is ray_estimator.EstimatorSpec
assert RunConfig is ray_estimator.RunConfig
print("all")
"""
    assert run(code) == "all"


def test_names_that_need_tensorflow_estimator_say_what_to_install() -> None:
    names = ("BinaryClassHead", "DNNClassifier", "LinearRegressor", "MultiHead", "experimental.KMeans")
    private = "from tensorflow.python.estimator.canned import head"
    said = errors((private, *(f"tf.estimator.{name}" for name in names)), without_package=True)
    assert "No module named 'tensorflow.python.estimator.canned'" in said[private]
    for name in names:
        assert f"has no attribute '{name.rpartition('.')[2]}'" in said[f"tf.estimator.{name}"]
    for text in said.values():
        assert "pip install tensorflow-estimator==2.15.0" in text


def test_an_unsupported_name_raises_an_error_that_says_what_to_use() -> None:
    fixes = {
        "tf.estimator.model_to_estimator": "Build the Keras model inside a model_fn.",
        "tf.estimator.experimental.model_to_estimator": "Build the Keras model inside a model_fn.",
        "tf.estimator.BoostedTreesClassifier": "ray.train.xgboost",
        "tf.estimator.NoSuchName": "ray_estimator does not support it",
        "tf.compat.v1.estimator.tpu.TPUEstimator": "TPUs are not supported",
        "tf.compat.v1.estimator.tpu.RunConfig": "scaling_config",
        "tf.estimator.inputs.no_such_input_fn": "ray_estimator does not support it",
    }
    for name, text in errors(tuple(fixes)).items():
        assert f"has no attribute '{name.rpartition('.')[2]}'" in text
        assert fixes[name] in text
