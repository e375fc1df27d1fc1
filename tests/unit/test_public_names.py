"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import ray_estimator

GROUPS = {"errors", "experimental", "export", "hooks", "inputs", "trackers"}


def test_all_is_sorted_and_each_name_exists() -> None:
    assert list(ray_estimator.__all__) == sorted(set(ray_estimator.__all__))
    for name in ray_estimator.__all__:
        assert getattr(ray_estimator, name) is not None


def test_all_is_what_is_visible() -> None:
    visible = {
        name
        for name, value in vars(ray_estimator).items()
        if not name.startswith("_") and (not isinstance(value, ModuleType) or name in GROUPS)
    }

    assert visible == set(ray_estimator.__all__)


def test_no_third_party_module_is_visible() -> None:
    modules = {value.__name__ for value in vars(ray_estimator).values() if isinstance(value, ModuleType)}

    assert {name for name in modules if not name.startswith("ray_estimator.")} == set()


def test_a_star_import_gives_the_public_names() -> None:
    code = "from ray_estimator import *; print(*sorted(name for name in dir() if not name.startswith('__')))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split() == ray_estimator.__all__


def test_public_classes_belong_to_the_package() -> None:
    for name in ray_estimator.__all__:
        value = getattr(ray_estimator, name)
        owner = value.__name__ if isinstance(value, ModuleType) else value.__module__
        assert owner.startswith("ray_estimator")
        assert value.__doc__
