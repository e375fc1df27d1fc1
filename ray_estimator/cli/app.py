"""The commands of `ray-estimator`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ray_estimator._storage.storage import Storage
from ray_estimator.cli import showing
from ray_estimator.cli.diagnosis import PROBLEM, Target, diagnose
from ray_estimator.cli.inspection import inspect as inspect_model_dir
from ray_estimator.cli.scanning import Scan, scan

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)  # fmt: skip

FOUND, USAGE = 1, 2


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"must be JSON such as '{{\"anon\": true}}', but cannot be parsed: {error}") from None
    if not isinstance(options, dict):
        raise typer.BadParameter(f"must be a JSON object such as '{{\"anon\": true}}', got {text}")
    return options


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
StorageOptions = Annotated[
    dict[str, Any],
    typer.Option(
        parser=_options,
        metavar="JSON",
        help="fsspec options for the model_dir, as in RunConfig(storage_options=...). Prefer environment variables for "
        "credentials.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("ray-estimator"))
        raise typer.Exit


@app.callback()
def ray_estimator(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Check programs, clusters and model_dirs of ray_estimator.

    \b
    Exit codes:
      0  no problems
      1  a problem, a finding in a source, or a damaged file
      2  invalid arguments, or a path that does not exist
    """


@app.command()
def doctor(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", help="Sources to scan: .py, .ipynb, directories.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="Ray cluster to check: `auto`, or host:port. No cluster is started."),
    ] = None,
    model_dir: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Check that it can be written and read, from here and from workers."),
    ] = None,
    storage_options: StorageOptions = "{}",  # type: ignore[assignment]
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds to wait for the cluster.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Check whether this machine, a cluster, a store and your sources are ready.

    Checks the versions of Python, Ray, TensorFlow, Keras, pyarrow and fsspec, the GPUs, and optionally a Ray cluster
    and a model_dir. Sources are parsed, never run. Code that will break, such as tf.contrib, parameter servers, files
    that TensorFlow cannot open, Keras 2 layers and private names, is reported with its lines and how to fix it.

    \b
    Examples:
      ray-estimator doctor
      ray-estimator doctor train.py notebooks/
      ray-estimator doctor --address auto --model-dir s3://bucket/run
      ray job submit -- ray-estimator doctor --address auto --model-dir s3://bucket/run

    \b
    Exit codes:
      0  no problems and no findings
      1  a problem or a finding
      2  invalid arguments, or a path that does not exist
    """
    console = Console(soft_wrap=True, quiet=as_json)
    with _usage_error_if_not_found():
        checks = showing.show_checks(
            console, diagnose(Target(address or None, model_dir, dict(storage_options), timeout))
        )  # fmt: skip
        scanned = scan(paths) if paths else Scan(0, ())
    if paths:
        showing.show_scan(console, scanned)
    if as_json:
        found = [each.to_json() for each in scanned.found]
        _print_json({"checks": [each.to_json() for each in checks], "files": scanned.files, "findings": found})
    if scanned.found or any(check.status == PROBLEM for check in checks):
        raise typer.Exit(FOUND)


@app.command()
def inspect(
    model_dir: Annotated[str, typer.Argument(metavar="MODEL_DIR", help="Local path or URL.")],
    storage_options: StorageOptions = "{}",  # type: ignore[assignment]
    last: Annotated[int, typer.Option(min=0, help="Number of global steps to show metrics of.")] = 10,
    verify: Annotated[
        bool, typer.Option(help="Read every byte. Otherwise only the sizes of files on object stores are checked.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the contents of a model_dir: checkpoints and their state, the writer, training progress, metrics.

    A checkpoint is intact if its files match its manifest. Nothing is changed.

    \b
    Examples:
      ray-estimator inspect /tmp/run
      ray-estimator inspect s3://bucket/run --verify
      ray-estimator inspect s3://bucket/run --storage-options '{"profile": "research"}' --json

    \b
    Exit codes:
      0  every published checkpoint is intact
      1  a published checkpoint, or the state file, is damaged
      2  invalid arguments, or model_dir is empty or cannot be read
    """
    storage = Storage(dict(storage_options))
    with _usage_error_if_not_found():
        try:
            report = inspect_model_dir(model_dir, storage, last=last, verify=verify)
        except (FileNotFoundError, typer.Exit):
            raise
        except Exception as error:  # any error of any store
            typer.echo(storage.redacted(f"{model_dir} cannot be read: {type(error).__name__}: {error}"), err=True)
            raise typer.Exit(USAGE) from None
    if as_json:
        _print_json(report.to_json())
    else:
        showing.show_report(Console(soft_wrap=True), report)
    if report.is_damaged:
        raise typer.Exit(FOUND)


@contextlib.contextmanager
def _usage_error_if_not_found() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        typer.echo(f"Not found: {error}", err=True)
        raise typer.Exit(USAGE) from None


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
