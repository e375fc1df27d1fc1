"""`install()`: restore the names of `tf.estimator`, in this process and in its workers.

A meta path finder, placed before all others, finds the modules of tf.estimator and adds them to TensorFlow when it is
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
    """Restore the names of tf.estimator, so that code which uses them runs unchanged.

    These forms work in this process and in every worker and task of its Estimators, whether or not TensorFlow is
    imported already:

        tf.estimator.Estimator, tf.compat.v1.estimator.Estimator
        from tensorflow import estimator
        from tensorflow.compat.v1 import estimator
        from tensorflow_estimator import estimator
        tf.estimator.export, tf.estimator.inputs, tf.estimator.experimental
        from tensorflow.python.estimator import model_fn, run_config

    They resolve to this package. Heads and canned estimators also need the package tensorflow-estimator. Its classes
    are used unchanged and train with this package. Unsupported names raise an AttributeError that says what to use.

    Call it at the start of the program, on the driver. Other processes of Ray, such as the tasks of Ray Data, do not
    have the names: modules that run there must call it too. Further calls have no effect.
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
    """A finder of the modules of tf.estimator, and of the TensorFlow modules that they are added to."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("tensorflow"):
            return None
        if fullname in PARENTS:
            found = (
                self._package_spec() if fullname == PACKAGE else self._found_by_other_finders(fullname, path, target)
            )
            return _with_names_added(found)
        names = names_module.names_of(fullname)
        if names is not None:
            return ModuleSpec(fullname, _Existing(names), is_package=True)
        alias = names_module.alias_of(fullname)
        if alias is None:
            return None
        if not names_module.has_package():
            raise ModuleNotFoundError(f"No module named {fullname!r}: {names_module.GET_PACKAGE}.", name=fullname)
        return ModuleSpec(fullname, _Alias(alias), is_package=True)

    def _found_by_other_finders(self, *arguments: Any) -> ModuleSpec | None:
        specs = (finder.find_spec(*arguments) for finder in sys.meta_path if finder is not self)
        return next((spec for spec in specs if spec is not None), None)

    @staticmethod
    def _package_spec() -> ModuleSpec:
        """Return the spec of tensorflow-estimator without its `__init__`, which fails on this TensorFlow."""
        package = ModuleType(PACKAGE, "The names of tensorflow_estimator in ray_estimator.")
        spec = ModuleSpec(PACKAGE, _Existing(package), is_package=True)
        spec.submodule_search_locations = names_module.package_path() or []
        return spec


def _with_names_added(spec: ModuleSpec | None) -> ModuleSpec | None:
    """Return `spec` with a loader that adds the names to the module after executing it."""
    if spec is None or spec.loader is None:
        return spec
    execute = spec.loader.exec_module

    def execute_and_add(module: ModuleType) -> None:
        execute(module)
        _add_to(module.__name__)

    spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
    return spec


class _Existing(Loader):
    """A loader that returns an existing module."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing."""


class _Alias(Loader):
    """A loader that imports another module in its place."""

    def __init__(self, name: str) -> None:
        self._name = name

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self._name)
