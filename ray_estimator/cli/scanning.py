"""`scan`: find code that will break. Sources are parsed, never run.

Names are looked up in the installed TensorFlow, so findings apply to its version. Names whose absence a source handles,
as in ``try: ... except ImportError``, are not reported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_estimator._process import legacy_keras
from ray_estimator._tf_private.keras_settings import OPTIMIZER_ARGUMENTS_WITHOUT_EFFECT
from ray_estimator.cli import estimator_names, tensorflow_names
from ray_estimator.cli.findings import CALL, PLACEMENT, PRIVATE, REMOTE_FILE, SYNTAX, Finding, Found, group_findings
from ray_estimator.cli.names import Names, Use
from ray_estimator.cli.sources import Place, Source, files_below, read
from ray_estimator.config import REFUSED_ARGUMENTS

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PRIVATE_METHODS = {
    "_call_input_fn",
    "_call_model_fn",
    "_evaluate_build_graph",
    "_evaluate_run",
    "_get_features_and_labels_from_input_fn",
    "_get_features_from_input_fn",
    "_train_model",
    "_train_model_default",
    "_train_model_distributed",
    "_train_with_estimator_spec",
}
_FILES_READ_OR_WRITTEN = (
    "io.gfile.",
    "gfile.",
    "io.read_file",
    "io.write_file",
    "io.matching_files",
    "io.TFRecordWriter",
    "io.tf_record_iterator",
    "python_io.",
    "read_file",
    "write_file",
    "matching_files",
    "data.TFRecordDataset",
    "data.TextLineDataset",
    "data.FixedLengthRecordDataset",
    "data.Dataset.list_files",
    "data.experimental.CsvDataset",
    "data.experimental.make_csv_dataset",
    "data.experimental.make_batched_features_dataset",
    "feature_column.categorical_column_with_vocabulary_file",
    "feature_column.sequence_categorical_column_with_vocabulary_file",
    "lookup.TextFileInitializer",
    "saved_model.load",
    "saved_model.loader.load",
    "summary.FileWriter",
    "summary.create_file_writer",
    "train.load_checkpoint",
    "train.load_variable",
    "train.list_variables",
    "train.latest_checkpoint",
    "train.init_from_checkpoint",
    "train.NewCheckpointReader",
)
_SCALING = "Set the number of workers with RunConfig(scaling_config=ray.train.ScalingConfig(num_workers=...))"


@dataclass(frozen=True)
class Scan:
    """The findings of a scan.

    Attributes:
        files: Number of files.
        found: The findings.
    """

    files: int
    found: tuple[Found, ...]


@dataclass(frozen=True)
class ProgramSettings:
    """Settings that one source makes for all.

    Attributes:
        install: Whether a source calls `ray_estimator.install()`.
        legacy_keras: Whether a source enables Keras 2.
    """

    install: bool
    legacy_keras: bool


def scan(paths: Iterable[Path]) -> Scan:
    """Scan files and directories. Imports TensorFlow if a source uses it.

    Raises:
        FileNotFoundError: One of `paths` does not exist.
    """
    sources = [read(path) for path in files_below(paths)]
    names = [Names.of(source.tree) for source in sources]
    pairs = list(zip(sources, names, strict=True))
    settings = ProgramSettings(
        any(_calls_install(source.tree, each) for source, each in pairs),
        any(_enables_legacy_keras(source.tree) for source, _ in pairs),
    )
    found = [
        each for source, names in pairs for each in group_findings(source.path, _in_source(source, names, settings))
    ]
    return Scan(len(sources), tuple(found))


def _in_source(source: Source, names: Names, settings: ProgramSettings) -> Iterator[tuple[Finding, Place]]:
    for place, error in source.errors:
        yield (
            Finding(SYNTAX, f"Python 3 cannot parse it: {error}", "Convert it to Python 3; it was not scanned"),
            place,
        )
    for use in _without_redundant_imports(names.uses):
        for finding in _about_name(use.path, settings):
            yield finding, source.place(use.node)
    for node in ast.walk(source.tree):
        for finding in _about(node, names):
            yield finding, source.place(node)


def _without_redundant_imports(uses: list[Use]) -> Iterator[Use]:
    """Drop imports of private modules whose used names are reported themselves."""
    outer = {use.path.rpartition(".")[0] for use in uses if use.path.startswith(tensorflow_names.PRIVATE_ROOT)}
    return (use for use in uses if not (use.path in outer and isinstance(use.node, ast.Import | ast.ImportFrom)))


def _about_name(path: str, settings: ProgramSettings) -> Iterator[Finding]:
    if estimator_names.covers(path):
        yield from estimator_names.about(path, settings.install, settings.legacy_keras)
    elif (finding := tensorflow_names.about(path, settings.legacy_keras)) is not None:
        yield finding


def _about(node: ast.AST, names: Names) -> Iterator[Finding]:
    if isinstance(node, ast.Call):
        yield from _about_arguments(node, names)
        yield from _about_files(node, names)
    if isinstance(node, ast.Attribute) and node.attr in _PRIVATE_METHODS:
        what = f"{node.attr} is a private method of tf.estimator's Estimator"
        yield Finding(PRIVATE, what, "This Estimator has only the public methods: use them, or hooks")
    if _writes_tf_config(node, names):
        what = "TF_CONFIG is ignored, including parameter servers and evaluators"
        yield Finding(PLACEMENT, what, f"{_SCALING}. Workers find their role in config.is_chief and config.task_id")


def _about_arguments(node: ast.Call, names: Names) -> Iterator[Finding]:
    called = names.path_of(node.func) or ""
    method = node.func.attr if isinstance(node.func, ast.Attribute) else called.rpartition(".")[2]
    given = {each.arg for each in node.keywords if each.arg and not _is_none(each.value)}
    if method in ("RunConfig", "replace"):
        for name in REFUSED_ARGUMENTS:
            if name in given:
                yield Finding(PLACEMENT, f"RunConfig refuses {name}: Ray places the workers", _SCALING)
    if ".optimizers." in called:
        for name in OPTIMIZER_ARGUMENTS_WITHOUT_EFFECT:
            if name in given:
                fix = "Omit it, or use an optimizer of tf.compat.v1.train"
                yield Finding(CALL, f"{name} of a Keras optimizer has no effect in a graph, and is an error", fix)
    if not _knows_estimators(names):
        return
    second = node.args[1] if len(node.args) > 1 else None
    if method == "train" and (isinstance(second, ast.List) or (isinstance(second, ast.Name) and second.id == "hooks")):
        what = "train takes (input_fn, steps, hooks, max_steps), but the second argument is hooks"
        yield Finding(CALL, what, "Pass them by name: hooks=...")
    if method == "decode" and isinstance(node.func, ast.Attribute) and _exports(node.func.value):
        yield Finding(CALL, "The path of an export is a str here, not bytes", "Remove .decode()")


def _about_files(node: ast.Call, names: Names) -> Iterator[Finding]:
    called = tensorflow_names.below_tf(names.path_of(node.func) or "")
    if called is None or not called.startswith(_FILES_READ_OR_WRITTEN):
        return
    for argument in (*node.args, *(each.value for each in node.keywords)):
        scheme = _SCHEME.match(names.text_of(argument))
        if scheme is not None and not tensorflow_names.opens(scheme.group(1)):
            fix = (
                "To read files use ray_estimator.stage(url), which returns a local path; for rows use Ray Data with "
                "dataset_input_fn. To write files use fsspec"
            )
            yield Finding(REMOTE_FILE, f"tf.{called} gets a URL {scheme.group()}..., which TensorFlow cannot open", fix)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _exports(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("export_saved_model", "export_savedmodel")
    )


def _knows_estimators(names: Names) -> bool:
    return any("estimator" in use.path for use in names.uses)


def _writes_tf_config(node: ast.AST, names: Names) -> bool:
    if isinstance(node, ast.Assign):
        return any(_is_item_of_environ(target, names) for target in node.targets)
    if not isinstance(node, ast.Call):
        return False
    called = names.path_of(node.func)
    if called in ("os.environ.setdefault", "os.putenv"):
        return bool(node.args) and names.text_of(node.args[0]) == "TF_CONFIG"
    if called == "os.environ.update":
        keys = [key for each in node.args if isinstance(each, ast.Dict) for key in each.keys if key is not None]
        return "TF_CONFIG" in (*(each.arg for each in node.keywords), *(names.text_of(key) for key in keys))
    return False


def _is_item_of_environ(node: ast.AST, names: Names) -> bool:
    return (
        isinstance(node, ast.Subscript)
        and names.path_of(node.value) == "os.environ"
        and names.text_of(node.slice) == "TF_CONFIG"
    )


def _calls_install(tree: ast.AST, names: Names) -> bool:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(names.path_of(call.func) == "ray_estimator.install" for call in calls)


def _enables_legacy_keras(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "legacy_keras":
            return not (isinstance(node.value, ast.Constant) and not node.value.value)
        if isinstance(node, ast.Constant) and node.value == legacy_keras.NAME:
            return True
    return False
