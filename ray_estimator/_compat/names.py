"""The modules and names of tf.estimator, and what each resolves to.

Tables map names to ``module:attribute``. A `Names` module imports the target on first use. Importing this module
imports neither TensorFlow nor Ray.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from ray_estimator import hooks

PACKAGE = "tensorflow_estimator"
INTERNALS = f"{PACKAGE}.python.estimator"
"""Root of the private modules of the package tensorflow-estimator."""

GET_PACKAGE = (
    "install the package tensorflow-estimator, which has the heads and canned estimators: "
    "pip install tensorflow-estimator==2.15.0"
)

INTERNAL_ROOTS = (INTERNALS, "tensorflow.python.estimator")

Table = Mapping[str, str]


def _all_in(home: str, names: Iterable[str]) -> dict[str, str]:
    return {name: f"{home}:{name}" for name in names}


_EXPORTERS = ("BestExporter", "Exporter", "FinalExporter", "LatestExporter")
_TRAINING = ("EvalSpec", "TrainSpec", "train_and_evaluate")
_EARLY_STOPPING = (
    "make_early_stopping_hook",
    "stop_if_higher_hook",
    "stop_if_lower_hook",
    "stop_if_no_decrease_hook",
    "stop_if_no_increase_hook",
)
_MORE_HOOKS = ("InMemoryEvaluatorHook", "make_stop_at_checkpoint_step_hook")

_CORE = {
    **_all_in("ray_estimator", ("Estimator", "EstimatorSpec", "ModeKeys", "RunConfig")),
    **_all_in("ray_estimator", ("VocabInfo", "WarmStartSettings", "add_metrics")),
    **_all_in("ray_estimator", _TRAINING + _EXPORTERS),
    **_all_in("ray_estimator", hooks.NAMES),
}
_HEADS = {
    "BinaryClassHead": f"{INTERNALS}.head.binary_class_head:BinaryClassHead",
    "Head": f"{INTERNALS}.head.base_head:Head",
    "LogisticRegressionHead": f"{INTERNALS}.head.regression_head:LogisticRegressionHead",
    "MultiClassHead": f"{INTERNALS}.head.multi_class_head:MultiClassHead",
    "MultiHead": f"{INTERNALS}.head.multi_head:MultiHead",
    "MultiLabelHead": f"{INTERNALS}.head.multi_label_head:MultiLabelHead",
    "PoissonRegressionHead": f"{INTERNALS}.head.regression_head:PoissonRegressionHead",
    "RegressionHead": f"{INTERNALS}.head.regression_head:RegressionHead",
}
_CANNED_MODULES = {
    "Baseline": "baseline",
    "DNN": "dnn",
    "DNNLinearCombined": "dnn_linear_combined",
    "Linear": "linear",
}


def _canned(version: str) -> dict[str, str]:
    """Return the canned estimators. Those of tf.compat.v1 take v1 optimizers and heads, the others those of Keras."""
    table = {
        f"{family}{kind}": f"{INTERNALS}.canned.{module}:{family}{kind}{version}"
        for family, module in _CANNED_MODULES.items()
        for kind in ("Classifier", "Estimator", "Regressor")
    }
    specs = ("classifier_parse_example_spec", "regressor_parse_example_spec")
    ending = "_v2" if version else ""
    return table | {name: f"{INTERNALS}.canned.parsing_utils:{name}{ending}" for name in specs}


_V1 = {**_CORE, **_HEADS, **_canned("")}
_V2 = {**_CORE, **_HEADS, **_canned("V2")}

_EXPORT = _all_in(
    "ray_estimator.export",
    (
        "ClassificationOutput",
        "EvalOutput",
        "ExportOutput",
        "PredictOutput",
        "RegressionOutput",
        "ServingInputReceiver",
        "TensorServingInputReceiver",
        "build_parsing_serving_input_receiver_fn",
        "build_raw_serving_input_receiver_fn",
    ),
)
_EXPORT_LIB = _EXPORT | _all_in(
    "ray_estimator.export",
    (
        "SupervisedInputReceiver",
        "build_raw_supervised_input_receiver_fn",
        "build_supervised_input_receiver_fn_from_input_fn",
    ),
)
_INPUTS = _all_in("ray_estimator.inputs", ("numpy_input_fn", "pandas_input_fn"))
_EXPERIMENTAL = {
    **_all_in("ray_estimator.experimental", (*_EARLY_STOPPING, *_MORE_HOOKS, "call_logit_fn")),
    **_all_in("ray_estimator.export", ("build_raw_supervised_input_receiver_fn",)),
    "KMeans": f"{INTERNALS}.canned.kmeans:KMeansClustering",
    "LinearSDCA": f"{INTERNALS}.canned.linear:LinearSDCA",
    "RNNClassifier": f"{INTERNALS}.canned.rnn:RNNClassifier",
    "RNNEstimator": f"{INTERNALS}.canned.rnn:RNNEstimator",
    "dnn_logit_fn_builder": f"{INTERNALS}.canned.dnn:dnn_logit_fn_builder",
    "linear_logit_fn_builder": f"{INTERNALS}.canned.linear:linear_logit_fn_builder",
}
GROUPS: Mapping[str, Table] = {"export": _EXPORT, "experimental": _EXPERIMENTAL, "inputs": _INPUTS, "tpu": {}}

_ROOTS: Mapping[str, Table] = {
    "tensorflow.estimator": _V2,
    "tensorflow.compat.v1.estimator": _V1,
    "tensorflow.compat.v2.estimator": _V2,
    # TensorFlow imports its compat modules under two names.
    "tensorflow._api.v2.compat.v1.estimator": _V1,
    "tensorflow._api.v2.compat.v2.estimator": _V2,
    f"{PACKAGE}.estimator": _V1,
    f"{PACKAGE}._api.v1.estimator": _V1,
    f"{PACKAGE}._api.v2.estimator": _V2,
}
PARENTS = frozenset(root.rpartition(".")[0] for root in _ROOTS)
"""Modules with an attribute `estimator`."""

_REPLACED: Mapping[str, Table] = {
    "early_stopping": _all_in("ray_estimator.experimental", _EARLY_STOPPING),
    "estimator": {
        **_all_in("ray_estimator", ("Estimator", "VocabInfo", "WarmStartSettings")),
        "EstimatorV2": "ray_estimator:Estimator",
        "_canned_estimator_api_gauge": f"{__name__}:Uncounted",
    },
    "estimator_lib": _V1 | _INPUTS | _EXPERIMENTAL,
    "estimator_export": {"estimator_export": f"{__name__}:Unregistered"},
    "exporter": _all_in("ray_estimator", _EXPORTERS),
    "extenders": _all_in("ray_estimator", ("add_metrics",)),
    "hooks.hooks": _all_in("ray_estimator.experimental", _MORE_HOOKS),
    "run_config": _all_in("ray_estimator", ("RunConfig",)),
    "training": _all_in("ray_estimator", _TRAINING),
}
"""Private modules that resolve to this package even if tensorflow-estimator is installed. Its own ones cannot be
imported on this TensorFlow, or have their own Estimator."""

_WITHOUT_PACKAGE: Mapping[str, Table] = {
    "": {},
    "export": {},
    "hooks": {},
    "export.export": _EXPORT_LIB,
    "export.export_lib": _EXPORT_LIB,
    "export.export_output": _EXPORT,
    "inputs": _INPUTS,
    "inputs.inputs": _INPUTS,
    "inputs.numpy_io": _INPUTS,
    "inputs.pandas_io": _INPUTS,
    "mode_keys": _all_in("ray_estimator", ("ModeKeys",)),
    "model_fn": _all_in("ray_estimator", ("EstimatorSpec", "ModeKeys")),
}

_INSTEAD = {
    "BoostedTrees": "Train boosted trees with ray.train.xgboost or ray.train.lightgbm.",
    "model_to_estimator": "Build the Keras model inside a model_fn.",
}
_NO_TPU = (
    "Parameter servers and TPUs are not supported. Use Estimator with "
    "RunConfig(scaling_config=ray.train.ScalingConfig(num_workers=..., use_gpu=...))."
)


class Unregistered:
    """A decorator in place of `estimator_export`, which registers public names. They are in the tables here."""

    def __init__(self, *names: str, **names_by_version: Any) -> None:
        """Do nothing."""

    def __call__(self, declared: Any) -> Any:
        """Return the decorated object unchanged."""
        return declared


class Uncounted:
    """A gauge that discards the usage reports of canned estimators."""

    @classmethod
    def get_cell(cls, *labels: str) -> type[Uncounted]:
        """Return the gauge for the labels."""
        return cls

    @staticmethod
    def set(value: str) -> None:
        """Do nothing."""


class Names(ModuleType):
    """A module of tf.estimator whose names are resolved on first use."""

    def __init__(self, name: str, table: Table, groups: Iterable[str] = ()) -> None:
        super().__init__(name, f"The names of {name} in ray_estimator.")
        self._table = table
        self._groups = tuple(groups)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # looked up by Python itself
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name in self._groups:
            return importlib.import_module(f"{self.__name__}.{name}")
        if name not in self._table:
            raise self._missing(name, replacement_for(self.__name__, name))
        home, _, attribute = self._table[name].partition(":")
        try:
            return getattr(importlib.import_module(home), attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != PACKAGE:
                raise
            raise self._missing(name, f"To use it, {GET_PACKAGE}.") from error
        except AttributeError as error:
            if not home.startswith("ray_estimator"):
                raise
            raise self._missing(name, replacement_for(self.__name__, name)) from error

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._table, *self._groups})

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self.__name__,)

    def _missing(self, name: str, advice: str) -> AttributeError:
        text = f"module {self.__name__!r} has no attribute {name!r}: ray_estimator does not support it. {advice}"
        return AttributeError(text.rstrip(), name=name, obj=self)


def replacement_for(module: str, name: str) -> str:
    """Return what to use instead of an unsupported name of tf.estimator; empty if unknown."""
    if module.endswith(".tpu") or name.startswith("TPU"):
        return _NO_TPU
    return next((advice for prefix, advice in _INSTEAD.items() if name.startswith(prefix)), "")


def home_of(module: str, name: str) -> str | None:
    """Return the ``module:attribute`` that a public name of tf.estimator resolves to; None if it is unsupported."""
    root, _, group = module.rpartition(".")
    table = _ROOTS.get(module) or (GROUPS.get(group, {}) if root in _ROOTS else {})
    return table.get(name)


def is_public(module: str) -> bool:
    """Whether `module` is tf.estimator or one of its groups of names, under any path."""
    root, _, group = module.rpartition(".")
    return module in _ROOTS or (root in _ROOTS and group in GROUPS)


def needs_legacy_keras(model_fn: Any) -> bool:
    """Whether `model_fn` belongs to a canned estimator that needs Keras 2. Those without layers do not."""
    home, name = (str(getattr(model_fn, attribute, "")) for attribute in ("__module__", "__qualname__"))
    return _is_for_keras_2(home, "V2." in name)


def home_needs_legacy_keras(home: str) -> bool:
    """Whether `home`, a result of `home_of`, is a canned estimator that needs Keras 2."""
    module, _, name = home.partition(":")
    return name[:1].isupper() and _is_for_keras_2(module, name.endswith("V2"))


def _is_for_keras_2(module: str, is_v2: bool) -> bool:
    if not module.startswith(f"{INTERNALS}.canned."):
        return False
    return module.rpartition(".")[2] not in ("baseline", "kmeans") or is_v2


def names_of(module: str) -> Names | None:
    """Return the replacement of `module`; None if there is none."""
    root, _, group = module.rpartition(".")
    if module in _ROOTS:
        return Names(module, _ROOTS[module], GROUPS)
    if root in _ROOTS and group in GROUPS:
        return Names(module, GROUPS[group])
    below = _below_internals(module)
    if below is None:
        return None
    if below in _REPLACED:
        return Names(module, _REPLACED[below])
    if below in _WITHOUT_PACKAGE and not has_package():
        groups = [name for name in (*_REPLACED, *_WITHOUT_PACKAGE) if name and "." not in name]
        return Names(module, _WITHOUT_PACKAGE[below], () if below else groups)
    return None


def alias_of(module: str) -> str | None:
    """Return the module of tensorflow-estimator for a former private module of TensorFlow; None for others."""
    below = _below_internals(module)
    if below is None or module.startswith(PACKAGE):
        return None
    return f"{INTERNALS}.{below}" if below else INTERNALS


def _below_internals(module: str) -> str | None:
    for root in INTERNAL_ROOTS:
        if module == root or module.startswith(f"{root}."):
            return module[len(root) + 1 :]
    return None


def package_path() -> list[str] | None:
    """Return the path of the package tensorflow-estimator; None if it is not installed."""
    spec = PathFinder.find_spec(PACKAGE)
    return None if spec is None else list(spec.submodule_search_locations or ())


def has_package() -> bool:
    """Whether the package tensorflow-estimator is installed."""
    return package_path() is not None
