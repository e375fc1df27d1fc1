"""Each private name of Ray that needs no running Ray, and that no other module uses any."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.data._internal import progress
from ray.data._internal.execution import streaming_executor
from ray.train import ControllerError, ScalingConfig
from ray.train.v2._internal import constants, exceptions

import ray_estimator
from ray_estimator._runtime import logs, ray_private

PACKAGE = Path(ray_estimator.__file__).parent


def test_this_ray_has_every_name() -> None:
    ray_private.require_names()


@pytest.mark.parametrize("name", ray_private._MODULES)
def test_a_missing_name_is_an_error_before_work_starts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ray_private._MODULES, name, "ray.moved")
    with pytest.raises(ImportError, match=rf"lacks ray\.moved\.{name}, which ray_estimator needs"):
        ray_private.require_names()


def test_a_missing_attribute_of_a_wrapper_is_an_error_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exceptions.UserExceptionWithTraceback, "__init__", lambda self, error, trace: None)
    with pytest.raises(ImportError, match="lacks the wrapped error of UserExceptionWithTraceback"):
        ray_private.require_names()


def test_a_missing_attribute_of_scaling_config_is_an_error_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ScalingConfig.__mro__:
        if "_resources_per_worker_not_none" in vars(kind):
            monkeypatch.delattr(kind, "_resources_per_worker_not_none")
    with pytest.raises(ImportError, match=r"lacks ray\.train\.ScalingConfig\._resources_per_worker_not_none"):
        ray_private.require_names()


# Tasks and processes


def test_streaming_options_are_options_of_ray() -> None:
    def rows() -> Iterator[int]:
        yield 1

    ray.remote(rows).options(**ray_private.streaming_options(3))


def test_titles_tell_idle_processes_of_ray_from_others() -> None:
    titles = [b"ray::IDLE", b"ray::_run()", b"python"]
    assert [ray_private.is_ray_process(title) for title in titles] == [True, True, False]
    assert [ray_private.is_idle_process(title) for title in titles] == [True, False, False]


# Ray Train


def test_train_settings_are_variables_that_ray_train_reads() -> None:
    settings = ray_private.train_settings(30)
    assert settings[constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] == "30"
    assert len(settings) == 5
    assert {name for name in settings if not name.startswith("RAY_TRAIN_")} == set()
    assert float(ray_private.train_settings(None)[constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR]) > 10**8


def test_worker_resources_have_rays_defaults() -> None:
    assert ray_private.worker_resources(ScalingConfig(num_workers=2)) == {"CPU": 1}
    assert ray_private.worker_resources(ScalingConfig(resources_per_worker={"CPU": 2})) == {"CPU": 2}


def test_wrapped_errors_are_found() -> None:
    error = ValueError("x")
    assert ray_private.wrapped_error(exceptions.UserExceptionWithTraceback(error, "trace")) is error
    assert ray_private.wrapped_error(exceptions.WorkerHealthCheckFailedError("unhealthy", error)) is error
    assert ray_private.wrapped_error(ControllerError(error)) is error
    assert ray_private.wrapped_error(error) is None


def test_starts_that_failed_are_told_from_starts_that_timed_out() -> None:
    timed_out = ControllerError(exceptions.WorkerGroupStartupTimeoutError(2))
    failed = ControllerError(exceptions.WorkerGroupStartupFailedError("lost"))
    other = ControllerError(ValueError("x"))
    assert [ray_private.start_timed_out(error) for error in (timed_out, failed, other)] == [True, False, False]
    assert [ray_private.start_failed(error) for error in (timed_out, failed, other, None)] == [
        False,
        True,
        False,
        False,
    ]


# Ray Data


def test_the_notice_of_progress_bars_is_logged_at_most_once_and_not_by_us(caplog: pytest.LogCaptureFixture) -> None:
    ray_private.hide_progress_bar_notice()
    context: Any = SimpleNamespace(enable_progress_bars=False, enable_operator_progress_bars=False)
    progress.get_progress_manager(context, "dataset", {}, False)
    assert caplog.text == ""


def test_notices_of_executions_are_hidden_and_warnings_are_not(caplog: pytest.LogCaptureFixture) -> None:
    assert streaming_executor.logger.name == ray_private.EXECUTION_LOGGER
    with caplog.at_level(logging.INFO, ray_private.EXECUTION_LOGGER), logs.without_execution_notices():
        streaming_executor.logger.info("finished")
        streaming_executor.logger.warning("hangs")
    assert caplog.messages == ["hangs"]


def test_an_execution_that_hides_its_operators_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert ray_private.unfinished_operators(object()) == []
    assert "does not say which operators of a Dataset are unfinished" in caplog.text


# The package


def test_no_other_module_uses_private_names_of_ray() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "ray_private.py"
        for line, name in private_names(ast.parse(path.read_text()), in_runtime="_runtime" in path.parts)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "from ray._private import state",
        "from ray.data import _internal",
        "import ray.train.v2._internal.constants",
        "from ray.experimental import internal_kv",
        "dataset._logical_plan",
        "ray._private.state",
        "f(_deep_copy=True)",
        "getattr(source, '_source_paths', None)",
        "logging.getLogger('ray.data._internal.execution')",
        "os.environ['RAY_TRAIN_METRICS_ENABLED']",
        "title.startswith(b'ray::IDLE')",
        "log_once('key')",
        "type(error).__name__ == 'WorkerGroupStartupFailedError'",
    ],
)
def test_the_scan_finds(line: str) -> None:
    assert list(private_names(ast.parse(line), in_runtime=True))


def private_names(tree: ast.Module, *, in_runtime: bool) -> Iterator[tuple[int, str]]:
    """Yield the lines and names of uses of Ray's private names.

    Ray's objects are only in `_runtime`: there, a private attribute that the module does not define is Ray's.
    """
    own = {"_replace"}  # of a NamedTuple
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, each.name) for each in names if is_private_path(each.name))
            case ast.ImportFrom(module=str(module), names=names):
                paths = (f"{module}.{each.name}" for each in names)
                yield from ((node.lineno, path) for path in paths if is_private_path(path))
            case ast.Constant(value=str(text)) if PRIVATE_TEXT.match(text) or (in_runtime and PRIVATE.match(text)):
                yield node.lineno, text
            case ast.Constant(value=bytes(text)) if text.startswith(b"ray::"):
                yield node.lineno, text.decode()
            case ast.Attribute(value=ast.Name(id=owner), attr=attr) if owner in ("self", "cls", "os", "sys"):
                pass
            case ast.Attribute(attr=attr) if in_runtime and PRIVATE.match(attr) and attr not in own:
                yield node.lineno, attr
            case ast.keyword(arg=str(arg)) if in_runtime and PRIVATE.match(arg):
                yield node.lineno, arg
            case ast.Name(id="log_once"):
                yield node.lineno, "log_once"


PRIVATE = re.compile(r"_[a-z]\w*$")
PRIVATE_TEXT = re.compile(
    r"ray::|RAY_TRAIN_|ray(\.\w+)*\._|WorkerGroupStartup|WorkerHealthCheck|UserExceptionWithTraceback"
)


def is_private_path(path: str) -> bool:
    first, *parts = path.split(".")
    return first == "ray" and any(part.startswith("_") or part == "internal_kv" for part in parts)
