"""`install()`: puts the names of `tf.estimator` back, in this process and in every worker of its runs.

A finder before all others answers for the modules of tf.estimator, and adds them to TensorFlow as soon as it is
imported. Importing this module, or calling `install`, imports neither TensorFlow nor Ray.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ray_estimator._compat import names as names_module
from ray_estimator._compat.names import PACKAGE, PARENTS


def install() -> None:
    """Puts the names of tf.estimator back: afterwards a file that uses them runs as it is.

    These forms work, in this process and in every worker and task of its Estimators, before and after TensorFlow is
    imported:

        tf.estimator.Estimator, tf.compat.v1.estimator.Estimator
        from tensorflow import estimator
        from tensorflow.compat.v1 import estimator
        from tensorflow_estimator import estimator
        tf.estimator.export, tf.estimator.inputs, tf.estimator.experimental
        from tensorflow.python.estimator import model_fn, run_config

    They lead to this package. Heads and canned estimators need the package tensorflow-estimator beside it; its classes
    are served as they are, and train here. A name that is not here raises an AttributeError that says what to use.

    Call it at the head of the program, on the driver. Processes that Ray starts for other reasons, such as the tasks
    of Ray Data, know nothing of it: a module of your own that runs there calls it too. Calling it again changes
    nothing.
    """
    if is_installed():
        return
    sys.meta_path.insert(0, _Finder())
    for parent in PARENTS & set(sys.modules):
        _add_to(parent)


def is_installed() -> bool:
    """Whether `install` was called in this process."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def _add_to(parent: str) -> None:
    # An imported module becomes an attribute of its parent.
    importlib.import_module(f"{parent}.estimator")


class _Finder(MetaPathFinder):
    """Finds the modules of tf.estimator, and those of TensorFlow to which they are added."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("tensorflow"):
            return None
        if fullname in PARENTS:
            found = self._package() if fullname == PACKAGE else self._found_by_others(fullname, path, target)
            return _adding_names(found)
        names = names_module.names_of(fullname)
        if names is not None:
            return ModuleSpec(fullname, _Made(names), is_package=True)
        alias = names_module.alias_of(fullname)
        if alias is None:
            return None
        if not names_module.has_package():
            raise ModuleNotFoundError(f"No module named {fullname!r}: {names_module.GET_PACKAGE}.", name=fullname)
        return ModuleSpec(fullname, _Alias(alias), is_package=True)

    def _found_by_others(self, *question: Any) -> ModuleSpec | None:
        answers = (finder.find_spec(*question) for finder in sys.meta_path if finder is not self)
        return next((spec for spec in answers if spec is not None), None)

    @staticmethod
    def _package() -> ModuleSpec:
        """The package tensorflow-estimator without its own `__init__`, which does not run on this TensorFlow."""
        package = ModuleType(PACKAGE, "The names of tensorflow_estimator, as ray_estimator has them.")
        spec = ModuleSpec(PACKAGE, _Made(package), is_package=True)
        spec.submodule_search_locations = names_module.package_path() or []
        return spec


def _adding_names(spec: ModuleSpec | None) -> ModuleSpec | None:
    """`spec`, with the names added to the module after it was executed."""
    if spec is None or spec.loader is None:
        return spec
    execute = spec.loader.exec_module

    def execute_and_add(module: ModuleType) -> None:
        execute(module)
        _add_to(module.__name__)

    spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
    return spec


class _Made(Loader):
    """Gives a module that is made already."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


class _Alias(Loader):
    """Gives another module, which is imported if need be."""

    def __init__(self, name: str) -> None:
        self._name = name

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self._name)
