"""What the installed TensorFlow offers: names, URL schemes, GPUs."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

import tensorflow as tf

from ray_estimator._tf_private.names import PRIVATE_PACKAGES, public_name_of

_ABSENT = object()

logger = logging.getLogger(__name__)


def exists(path: str) -> bool:
    """Return whether `path`, such as ``tensorflow.compat.v1.placeholder``, exists, without looking into classes."""
    return _resolve(path)[0] is not _ABSENT


def symbol_of(path: str) -> str:
    """Return `path` up to the first name that is not a module: a function, a class or a missing name."""
    _, rest = _resolve(path)
    return path.removesuffix("".join(f".{name}" for name in rest))


def public_name(path: str) -> str | None:
    """Return the public name of the symbol at the private `path`, such as ``tf.compat.v1.placeholder``, or None."""
    found, rest = _resolve(path)
    name = None if rest or isinstance(found, ModuleType) else public_name_of(found)
    return None if name is None or name.startswith("__") else f"tf.{name}"


def opens(scheme: str) -> bool:
    """Return whether TensorFlow can open files with this URL scheme."""
    return scheme in tf.io.gfile.get_registered_schemes()


def visible_gpus() -> int:
    """Return the number of GPUs that TensorFlow sees. Allocates no GPU memory."""
    return len(tf.config.list_physical_devices("GPU"))


def _resolve(path: str) -> tuple[object, list[str]]:
    """Return the last object reached by following modules along `path`, and the names after it."""
    resolved, *names = path.split(".")
    found: object = importlib.import_module(resolved)
    while names and isinstance(found, ModuleType):
        resolved = f"{resolved}.{names[0]}"
        found = _attribute(found, names.pop(0), resolved)
    return found, names


def _attribute(module: ModuleType, name: str, path: str) -> object:
    try:
        return getattr(module, name)
    except AttributeError:
        pass
    except Exception:  # TensorFlow's lazy modules import other packages, which can fail in any way.
        logger.debug("Reading %s failed.", path, exc_info=True)
    if not path.startswith(PRIVATE_PACKAGES):
        return _ABSENT
    try:
        return importlib.import_module(path)
    except ImportError:
        return _ABSENT
    except Exception:  # The same holds for private modules.
        logger.debug("Importing %s failed.", path, exc_info=True)
        return _ABSENT
