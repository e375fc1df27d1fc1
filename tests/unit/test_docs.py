"""README.md and docs/*.md agree with the code. Their Python blocks run in tests/ray/test_readme.py."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
import typer

from ray_estimator import RunConfig, errors
from ray_estimator.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.name: path.read_text() for path in PAGES}


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=[path.name for path in PAGES])
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path

        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_readme_links_to_every_page() -> None:
    assert {f"docs/{path.name}" for path in PAGES[1:]} <= set(re.findall(r"\]\(([^)#\s]+)", TEXTS["README.md"]))


def test_commands_of_ray_estimator_parse() -> None:
    blocks = [block for text in TEXTS.values() for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S)]
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    calls = [line.split()[1:] for line in lines if line.startswith("ray-estimator ")]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    assert {name for name, *_ in calls} == set(commands)
    for name, *arguments in calls:
        commands[name].make_context(name, arguments)


def test_extras_are_those_of_the_package() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    (line,) = re.findall(r'^pip install "\.\[(\w+)\]" +# other extras: (.*)$', TEXTS["README.md"], flags=re.M)

    assert {line[0], *line[1].split(", ")} == extras - {"dev"}


def test_configuration_lists_every_argument_of_run_config_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", TEXTS["configuration.md"], flags=re.M)
    config = RunConfig()

    names = [field.name for field in dataclasses.fields(RunConfig) if not field.name.startswith("_")]
    assert rows == [(name, repr(getattr(config, name))) for name in names]


def test_numbers_in_parentheses_after_an_argument_are_its_default() -> None:
    defaults = re.findall(r"`(\w+_secs)` \((\d+)\)", TEXTS["reliability.md"])

    assert len(defaults) >= 4
    assert [(name, float(number)) for name, number in defaults] == [
        (name, getattr(RunConfig(), name)) for name, _ in defaults
    ]
    assert f"`failure_config.max_failures` times ({RunConfig().max_failures})" in TEXTS["reliability.md"]


def test_errors_that_the_pages_name_exist() -> None:
    named = {name for text in TEXTS.values() for name in re.findall(r"`(\w+Error)`", text)}

    assert named - {"NanLossDuringTrainingError"} <= set(dir(errors))
    assert len(named) >= 8
