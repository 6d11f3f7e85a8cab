"""The documentation against the package: names, options, and that every page is run."""

import re
import tomllib
from pathlib import Path

import pytest

import pyrocg
from pyrocg.config import resolve

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [body for found, body in FENCE.findall(page.read_text()) if found == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_only_known_kinds_of_blocks(page):
    """Python blocks are run by conftest.py; nothing may hide from it under another name."""
    kinds = {language for language, _ in FENCE.findall(page.read_text())}
    directives = {"{eval-rst}", "{include}", "{toctree}"}
    assert kinds <= {"python", "console", "toml", *directives}


def test_every_public_name_is_in_the_api_page():
    documented = set(re.findall(r"automodule:: (\S+)", (ROOT / "docs" / "api.md").read_text()))
    homes = {f"pyrocg.{module}" for module in pyrocg._PUBLIC}
    assert homes - documented == set()


def test_the_configuration_file_is_valid():
    (text,) = blocks(ROOT / "docs" / "command_line.md", "toml")
    assert resolve(tomllib.loads(text)).system.kind == "alanine-dipeptide"


def test_commands_parse():
    """Every pyrocg command in the documentation has options that exist."""
    from pyrocg.arguments import make_parser
    from pyrocg.cli import COMMANDS

    parser = make_parser(COMMANDS)
    text = "\n".join(body for page in PAGES for body in blocks(page, "console"))
    commands = re.findall(r"(?:^\$ |&& )pyrocg ([^&\n#]*)", text, re.MULTILINE)
    assert len(commands) > 10
    for command in commands:
        parser.parse_args(command.split())
