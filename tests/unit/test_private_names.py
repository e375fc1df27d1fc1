"""Private names of TensorFlow, Keras and Ray are used in their homes only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ray_estimator"
TENSORFLOW_HOME = "_tf_private/"
RAY_HOME = "_runtime/ray_private.py"
SCANNERS = ("cli/",)  # they compare the names of user code with these, as strings
NAMES_OF_TF_ESTIMATOR = "tensorflow.python.estimator"  # `install()` creates this package

TENSORFLOW = re.compile(r"(tensorflow\.(python|core|compiler)|keras\.src)(\.|$)")
RAY = re.compile(r"ray(\.\w+)*?\.(_(?!_)\w*|experimental\.internal_kv)(\.|$)")
RAY_ATTRIBUTES = {
    *("_private", "_internal", "_logical_plan", "_topology", "_base_exc", "_deep_copy"),
    *("_internal_kv_get", "_internal_kv_put", "_internal_kv_del", "_resources_per_worker_not_none"),
}
PUBLIC = {"_replace", "_fields", "_asdict", "_make"}  # of named tuples
PUBLIC_OF_PYTHON = {"sys", "os"}  # `sys._getframe`, `os._exit`


def problems(path: str, source: str) -> list[str]:
    """The private names of others in a module, as `path:line: name`."""
    tree = ast.parse(source)
    own = set(_defined(tree))
    found = {}
    for node in ast.walk(tree):
        for name in _private_names(node, own):
            if not _is_allowed(path, name):
                found[node.lineno, name] = f"{path}:{node.lineno}: {name}"  # type: ignore[attr-defined]
    return [found[key] for key in sorted(found)]


def _is_allowed(path: str, name: str) -> bool:
    if path.startswith(SCANNERS) or name.startswith(NAMES_OF_TF_ESTIMATOR):
        return True
    if path == RAY_HOME:
        return bool(RAY.match(name)) or not TENSORFLOW.match(name)
    is_ray = RAY.match(name) or name.rpartition(".")[2] in RAY_ATTRIBUTES
    return path.startswith(TENSORFLOW_HOME) and not is_ray


def _private_names(node: ast.AST, own: set[str]) -> Iterator[str]:
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
        names = [node.value]  # for `sys.modules`, `import_module`, loggers
    elif isinstance(node, ast.Attribute):
        yield from _private_attribute(node.attr, ast.unparse(node.value), own)
        names = [ast.unparse(node)]
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "setattr", "hasattr", "delattr"}:
        attribute = node.args[1]
        if isinstance(attribute, ast.Constant):
            yield from _private_attribute(attribute.value, ast.unparse(node.args[0]), own)
    elif isinstance(node, ast.keyword) and node.arg in RAY_ATTRIBUTES:
        yield node.arg
    yield from (name for name in names if TENSORFLOW.match(name) or RAY.match(name))


def _private_attribute(attribute: str, owner: str, own: set[str]) -> Iterator[str]:
    """The attribute, unless this module defines it: a private name of ours is used in its own module only."""
    is_private = attribute.startswith("_") and not (attribute.startswith("__") and attribute.endswith("__"))
    if not is_private or attribute in own | PUBLIC or owner in {"self", "cls", "super()"} | PUBLIC_OF_PYTHON:
        return
    yield f"{owner}.{attribute}"


def _defined(tree: ast.Module) -> Iterator[str]:
    """The attributes and names that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def test_private_names_of_others_are_in_their_homes() -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    found = [
        problem
        for module in modules
        for problem in problems(module.relative_to(PACKAGE).as_posix(), module.read_text(encoding="utf-8"))
    ]
    assert len(modules) > 100
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import tensorflow.python.framework.ops",
        "from tensorflow.core.framework import graph_pb2",
        "from tensorflow.python import eager",
        "from tensorflow import python",
        "from keras.src.backend import common",
        "import sys\nsys.modules['keras.src.backend']",
        "context = sys.modules.get('tensorflow.python.eager.context')",
        "operation._add_control_inputs([])",
        "variable._initializer_op = None",
        "getattr(hook, '_listeners')",
        "import ray._private.state",
        "from ray.data._internal.execution import streaming_executor",
        "from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError",
        "from ray.experimental import internal_kv",
        "from ray.experimental.internal_kv import get",
        "ray._private.state.state.get_draining_nodes()",
        "dataset._logical_plan",
        "dataset.copy(_deep_copy=True)",
        "LOGGER = 'ray.data._internal.execution'",
    ],
)
def test_a_private_name_elsewhere_is_found(source: str) -> None:
    assert problems("_engine/model.py", source)


@pytest.mark.parametrize(
    "source",
    [
        "import tensorflow as tf\nfrom tensorflow.compat.v1 import train",
        "import ray.train\nfrom ray.data import Dataset\nfrom ray.train.v2.api.config import LoggingConfig",
        "class A:\n    def __init__(self, other):\n        self._own = other._own",
        "settings._replace(steps=1)._fields",
        "sys._getframe(1)",
        "value.__class__.__name__\nray.__version__",
        "from ray_estimator._data.columns import column_specs",
        "import tensorflow.python.estimator",
        "'A sentence about tensorflow.python is not a name.'",
    ],
)
def test_other_names_are_allowed(source: str) -> None:
    assert problems("_engine/model.py", source) == []


def test_each_home_holds_the_names_of_its_own_dependency() -> None:
    of_tensorflow = "from tensorflow.python.ops import array_ops\nop._update_input(0, tensor)"
    of_ray = "from ray._private import state\ndataset._logical_plan"
    assert problems("_tf_private/graphs.py", of_tensorflow) == []
    assert problems(RAY_HOME, of_ray) == []
    assert len(problems("_tf_private/graphs.py", of_ray)) == 2
    assert len(problems(RAY_HOME, of_tensorflow)) == 1
