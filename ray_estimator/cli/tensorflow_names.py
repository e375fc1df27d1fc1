"""Findings about names of TensorFlow and Keras."""

from __future__ import annotations

import functools
import importlib.metadata
from types import ModuleType

from ray_estimator._process.quiet import quiet_tensorflow
from ray_estimator.cli.findings import CALL, CONTRIB, LAYERS, PLACEMENT, PRIVATE, REMOVED, Finding

PRIVATE_ROOT = "tensorflow.python"
_KERAS_2 = ("layers.", "nn.rnn_cell.")
_PARAMETER_SERVERS = (
    "distribute.ParameterServerStrategy",
    "distribute.experimental.ParameterServerStrategy",
    "distribute.Server",
    "train.Server",
    "train.replica_device_setter",
)
_TPUS = (
    "distribute.TPUStrategy",
    "distribute.experimental.TPUStrategy",
    "distribute.cluster_resolver.TPUClusterResolver",
    "tpu.experimental.initialize_tpu_system",
)
_SCALING = "RunConfig(scaling_config=ray.train.ScalingConfig(num_workers=..., use_gpu=...))"
_CONTRIB_REPLACEMENTS = {
    "contrib.data": "tf.data",
    "contrib.distribute": _SCALING,
    "contrib.estimator": "ray_estimator.experimental, or ray_estimator.add_metrics",
    "contrib.feature_column": "tf.feature_column",
    "contrib.layers": "tf.compat.v1.layers with RunConfig(legacy_keras=True), or keras.layers",
    "contrib.learn": "ray_estimator.Estimator",
    "contrib.lookup": "tf.lookup",
    "contrib.metrics": "tf.compat.v1.metrics",
    "contrib.predictor": "tf.saved_model.load(path).signatures",
    "contrib.rnn": "tf.compat.v1.nn.rnn_cell with RunConfig(legacy_keras=True), or keras.layers",
    "contrib.seq2seq": "keras.layers",
    "contrib.slim": "tf.compat.v1.layers with RunConfig(legacy_keras=True), or keras.layers",
    "contrib.summary": "tf.summary",
    "contrib.tpu": f"{_SCALING}: TPUs are not supported",
    "contrib.training": "a plain dict as params",
}
_TENSORFLOW_1 = Finding(REMOVED, "Names of TensorFlow 1 are no longer in tf", "import tensorflow.compat.v1 as tf")
_REMOVED_FROM_KERAS = (
    "tf.keras is now Keras 3: see its migration guide, or use RunConfig(legacy_keras=True) and the extra legacy-keras"
)


def below_tf(path: str) -> str | None:
    """Return a name of TensorFlow without ``tensorflow.``, ``compat.v1.`` and ``compat.v2.``; None for other names."""
    root, _, name = path.partition(".")
    if root != "tensorflow":
        return None
    return name.removeprefix("compat.v1.").removeprefix("compat.v2.")


def about(path: str, legacy_keras: bool) -> Finding | None:
    """Return the finding for a name of TensorFlow or Keras; None if there is none.

    Args:
        path: Full path of the name.
        legacy_keras: Whether the program uses Keras 2.
    """
    root, name = path.partition(".")[0], below_tf(path)
    if name is None:
        return _about_keras(path) if root == "keras" and not legacy_keras else None
    if name == "contrib" or name.startswith("contrib."):
        return _about_contrib(name)
    if name in _PARAMETER_SERVERS:
        return Finding(
            PLACEMENT, f"tf.{name}: there are no parameter servers, training is synchronous", f"Use {_SCALING}"
        )
    if name in _TPUS:
        return Finding(PLACEMENT, f"tf.{name}: TPUs are not supported", f"Use {_SCALING}")
    if name.startswith(_KERAS_2):
        if legacy_keras:
            return None if path.startswith("tensorflow.compat.v1.") else _TENSORFLOW_1
        what = f"{_shown(path)} needs Keras 2, which is no longer part of TensorFlow"
        fix = f"Use tf.compat.v1.{name} with RunConfig(legacy_keras=True) and the extra legacy-keras, or keras.layers"
        return Finding(LAYERS, what, fix)
    if path.startswith(PRIVATE_ROOT):
        return _about_private(_symbol_of(path))
    if any(_is_private(part) for part in name.split(".")):
        return _about_private(path)
    if name.startswith("keras."):
        return None if legacy_keras else _about_keras(path)
    return _about_absent(path, name)


def opens(scheme: str) -> bool:
    """Whether TensorFlow can open URLs with this scheme."""
    opened: bool = _symbols().opens(scheme)
    return opened


def _about_contrib(name: str) -> Finding:
    below = ".".join(name.split(".")[:2])
    fix = _CONTRIB_REPLACEMENTS.get(below)
    what = f"tf.{below} was removed in TensorFlow 2.0"
    return Finding(CONTRIB, what, f"Use {fix}" if fix else "Find its replacement in tf.compat.v1, tf or keras")


def _about_private(path: str) -> Finding | None:
    public = _public_name(path)
    status = "may move in any release" if _exists(path) else f"not in TensorFlow {_version('tensorflow')}"
    what = f"{path if path.startswith(PRIVATE_ROOT) else _shown(path)} is private, and {status}"
    return Finding(PRIVATE, what, f"Use {public}" if public else "Find a public name in tf or tf.compat.v1")


def _about_keras(path: str) -> Finding | None:
    if path.endswith(".LossScaleOptimizer"):
        what = "LossScaleOptimizer applies its updates in a branch that never runs in a graph, and is an error"
        return Finding(CALL, what, "Use the policy mixed_bfloat16, which needs no loss scale")
    if path.endswith("keras.estimator.model_to_estimator"):
        return Finding(REMOVED, f"{_shown(path)} is not supported", "Build the Keras model inside a model_fn")
    if _exists(path):
        return None
    return Finding(REMOVED, f"{_shown(path)} is not in Keras {_version('keras')}", _REMOVED_FROM_KERAS)


def _about_absent(path: str, name: str) -> Finding | None:
    if not name or _exists(path):
        return None
    if _exists(f"tensorflow.compat.v1.{name}"):
        return _TENSORFLOW_1
    what = f"{_shown(path)} is not in TensorFlow {_version('tensorflow')}"
    return Finding(REMOVED, what, "Find its replacement in tf or tf.compat.v1")


def _shown(path: str) -> str:
    return path.replace("tensorflow.", "tf.", 1)


def _is_private(part: str) -> bool:
    return part == "__internal__" or (part.startswith("_") and not part.startswith("__"))


@functools.cache
def _exists(path: str) -> bool:
    if path.partition(".")[0] == "keras":
        path = f"tensorflow.{path}"
    found: bool = _symbols().exists(path)
    return found


@functools.cache
def _public_name(path: str) -> str | None:
    name: str | None = _symbols().public_name(path)
    return name


@functools.cache
def _symbol_of(path: str) -> str:
    symbol: str = _symbols().symbol_of(path)
    return symbol


def _symbols() -> ModuleType:
    with quiet_tensorflow():
        from ray_estimator._engine import symbols
    return symbols


def _version(package: str) -> str:
    return importlib.metadata.version(package)
