"""Findings about names of tf.estimator."""

from __future__ import annotations

from collections.abc import Iterator

from ray_estimator._compat import names
from ray_estimator._compat.names import GET_PACKAGE, GROUPS, INTERNAL_ROOTS, PACKAGE
from ray_estimator._process.legacy_keras import NAME as LEGACY_KERAS
from ray_estimator.cli.findings import ESTIMATOR, LAYERS, Finding

_INSTALL = "Call ray_estimator.install() at the start of the program, or import the names from ray_estimator"


def covers(path: str) -> bool:
    """Whether `path` is tf.estimator or a name in it, under any path."""
    parts = path.split(".")
    public = any(names.is_public(".".join(parts[:length])) for length in range(2, len(parts) + 1))
    return public or path.startswith((PACKAGE, *INTERNAL_ROOTS))


def about(path: str, installed: bool, legacy_keras: bool) -> Iterator[Finding]:
    """Yield the findings for a name of tf.estimator.

    Args:
        path: Full path of the name.
        installed: Whether the program calls `install()`.
        legacy_keras: Whether the program uses Keras 2.
    """
    module, name = _split(path)
    home = names.home_of(module, name)
    if not installed:
        yield Finding(ESTIMATOR, "tf.estimator was removed in TensorFlow 2.16", _INSTALL)
    if name and home is None and name not in GROUPS:
        fix = names.replacement_for(module, name) or "Build its model in a model_fn"
        yield Finding(ESTIMATOR, f"{module.replace('tensorflow.', 'tf.', 1)}.{name} is not supported", fix)
    if home is not None and home.startswith(f"{PACKAGE}."):
        yield from _about_package(name, home, legacy_keras)


def _split(path: str) -> tuple[str, str]:
    """Return the longest prefix of `path` that is a module of tf.estimator, and the name after it."""
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
        fix = f"RunConfig(legacy_keras=True) and the extra legacy-keras; in process also {LEGACY_KERAS}=1"
        yield Finding(LAYERS, f"The canned estimator {name} needs Keras 2", fix)
