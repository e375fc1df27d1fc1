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
        raise typer.BadParameter(
            f"expected JSON such as '{{\"anon\": true}}', but it cannot be read: {error}"
        ) from None
    if not isinstance(options, dict):
        raise typer.BadParameter(f"expected a JSON object such as '{{\"anon\": true}}', but received {text}")
    return options


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
StorageOptions = Annotated[
    dict[str, Any],
    typer.Option(
        parser=_options,
        metavar="JSON",
        help="fsspec's options for the model_dir, as RunConfig(storage_options=...) takes them. Credentials are better "
        "off in the environment.",
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
    """Look at programs, clusters and model_dirs of ray_estimator.

    \b
    Exit codes:
      0  all is well
      1  something was found: a problem, a finding in a source, damage
      2  the command was not understood, or what it names is not there
    """


@app.command()
def doctor(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", help="Sources to scan: .py, .ipynb, directories.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="The Ray cluster to look at: `auto`, or host:port. None is started."),
    ] = None,
    model_dir: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Try whether it can be written and read, from here and from workers."),
    ] = None,
    storage_options: StorageOptions = "{}",  # type: ignore[assignment]
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that the cluster may take to answer.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Say whether this machine, a cluster, a store and your sources are ready.

    Looks at the versions of Python, Ray, TensorFlow, Keras, pyarrow and fsspec, and at GPUs; at a Ray cluster, if one
    is named; at a model_dir, if one is named. Sources are parsed, never run: what will break in them is said with the
    line and the cure, such as tf.contrib, parameter servers, files that TensorFlow cannot open, layers of Keras 2 and
    private names.

    \b
    Examples:
      ray-estimator doctor
      ray-estimator doctor train.py notebooks/
      ray-estimator doctor --address auto --model-dir s3://bucket/run
      ray job submit -- ray-estimator doctor --address auto --model-dir s3://bucket/run

    \b
    Exit codes:
      0  no problems, no findings
      1  a problem or a finding
      2  the command was not understood, or a path is not there
    """
    console = Console(soft_wrap=True, quiet=as_json)
    with _missing_is_usage():
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
    last: Annotated[int, typer.Option(min=0, help="Show the metrics of so many global steps; 0 shows none.")] = 10,
    verify: Annotated[
        bool, typer.Option(help="Read every byte. Otherwise files on object stores are known by their sizes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is in a model_dir: checkpoints and their health, who writes, how far training is, metrics.

    A checkpoint is whole if its files are what its manifest says. Nothing is changed.

    \b
    Examples:
      ray-estimator inspect /tmp/run
      ray-estimator inspect s3://bucket/run --verify
      ray-estimator inspect s3://bucket/run --storage-options '{"profile": "research"}' --json

    \b
    Exit codes:
      0  everything that is published is whole
      1  something that is published is damaged
      2  the command was not understood, or there is nothing to read
    """
    storage = Storage(dict(storage_options))
    with _missing_is_usage():
        try:
            report = inspect_model_dir(model_dir, storage, last=last, verify=verify)
        except (FileNotFoundError, typer.Exit):
            raise
        except Exception as error:  # Stores raise what they like.
            typer.echo(storage.redacted(f"{model_dir} cannot be read: {type(error).__name__}: {error}"), err=True)
            raise typer.Exit(USAGE) from None
    if as_json:
        _print_json(report.to_json())
    else:
        showing.show_report(Console(soft_wrap=True), report)
    if report.is_damaged:
        raise typer.Exit(FOUND)


@contextlib.contextmanager
def _missing_is_usage() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        typer.echo(f"Not found: {error}", err=True)
        raise typer.Exit(USAGE) from None


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
