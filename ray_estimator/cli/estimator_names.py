"""What is to be said of a name of tf.estimator."""

from __future__ import annotations

from collections.abc import Iterator

from ray_estimator._compat import names
from ray_estimator._compat.names import GET_PACKAGE, INTERNALS, PACKAGE
from ray_estimator._process.legacy_keras import NAME as LEGACY_KERAS
from ray_estimator.cli.findings import ESTIMATOR, LAYERS, Finding

_PRIVATE = (INTERNALS, "tensorflow.python.estimator")
_GROUPS = ("export", "experimental", "inputs", "tpu")
_INSTALL = "Call ray_estimator.install() at the head of the program, or take the names from ray_estimator"


def covers(path: str) -> bool:
    """Whether `path` is tf.estimator, or something below it, by any of its names."""
    parts = path.split(".")
    public = any(names.is_public(".".join(parts[:length])) for length in range(2, len(parts) + 1))
    return public or path.startswith((PACKAGE, *_PRIVATE))


def about(path: str, installed: bool, legacy_keras: bool) -> Iterator[Finding]:
    """What is wrong with a name that `covers`.

    Args:
        path: In full.
        installed: Whether the program calls `install()`.
        legacy_keras: Whether it runs with Keras 2.
    """
    module, name = _split(path)
    home = names.home_of(module, name)
    if not installed:
        yield Finding(ESTIMATOR, "tf.estimator left TensorFlow with 2.16", _INSTALL)
    if name and home is None and name not in _GROUPS:
        cure = names.cure_for(module, name) or "Build its model in a model_fn"
        yield Finding(ESTIMATOR, f"{module.replace('tensorflow.', 'tf.', 1)}.{name} is not here", cure)
    if home is not None and home.startswith(f"{PACKAGE}."):
        yield from _about_package(name, home, legacy_keras)


def _split(path: str) -> tuple[str, str]:
    """The longest module of tf.estimator's that `path` begins with, and the name that follows it, if one does."""
    parts = path.split(".")
    for length in range(len(parts), 1, -1):
        module = ".".join(parts[:length])
        if names.is_public(module):
            return module, parts[length] if length < len(parts) else ""
    return path, ""


def _about_package(name: str, home: str, legacy_keras: bool) -> Iterator[Finding]:
    if not names.has_package():
        yield Finding(ESTIMATOR, f"{name} is in the package tensorflow-estimator", f"To use it, {GET_PACKAGE}")
    if names.home_needs_legacy_keras(home) and not legacy_keras:
        cure = f"RunConfig(legacy_keras=True) and the extra legacy-keras; in process also {LEGACY_KERAS}=1"
        yield Finding(LAYERS, f"The canned estimator {name} is written for Keras 2", cure)
