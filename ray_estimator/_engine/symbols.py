"""Which names the TensorFlow that is installed here has, and which files it opens."""

from __future__ import annotations

import importlib
from types import ModuleType

import tensorflow as tf

from ray_estimator._engine.tf_private.graphs import public_name_of

_PRIVATE = ("tensorflow.python", "tensorflow.core", "tensorflow.compiler")
_ABSENT = object()


def exists(path: str) -> bool:
    """Whether `path`, such as ``tensorflow.compat.v1.placeholder``, can be used. Into classes it does not look."""
    return _found(path)[0] is not _ABSENT


def symbol_of(path: str) -> str:
    """`path` up to the first name that is no module: that of a function or class, or of what is not there."""
    _, rest = _found(path)
    return path.removesuffix("".join(f".{name}" for name in rest))


def public_name(path: str) -> str | None:
    """The public name of what has the private name `path`: ``tf.compat.v1.placeholder``; None if it has none."""
    found, rest = _found(path)
    name = None if rest or isinstance(found, ModuleType) else public_name_of(found)
    return None if name is None or name.startswith("__") else f"tf.{name}"


def opens(scheme: str) -> bool:
    """Whether TensorFlow opens files of such URLs."""
    return scheme in tf.io.gfile.get_registered_schemes()


def _found(path: str) -> tuple[object, list[str]]:
    """What `path` leads to as far as there are modules, and the names that are left."""
    at, *names = path.split(".")
    found: object = importlib.import_module(at)
    while names and isinstance(found, ModuleType):
        at = f"{at}.{names[0]}"
        found = _attribute(found, names.pop(0), at)
    return found, names


def _attribute(module: ModuleType, name: str, path: str) -> object:
    try:
        return getattr(module, name)
    except Exception:  # Modules of Keras that are gone raise what they like.
        if not path.startswith(_PRIVATE):
            return _ABSENT
    try:
        return importlib.import_module(path)
    except Exception:
        return _ABSENT
