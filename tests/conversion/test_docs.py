"""Every source has a how-to page, a script that runs by itself, and no option in the page that it does not have."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ctnet_nnunet.cli.convert import app

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OTHER_TOOLS = {"--c"}


def page(source: str) -> str:
    return (ROOT / f"docs/how-to/convert-{source}.md").read_text(encoding="utf-8")


def test_pages_and_scripts_are_those_of_the_commands() -> None:
    pages = {path.stem.removeprefix("convert-") for path in (ROOT / "docs/how-to").glob("convert-*.md")}
    scripts = {path.stem.removeprefix("convert_") for path in (ROOT / "dataset_conversion").glob("convert_*.py")}
    assert pages == set(COMMANDS)
    assert scripts == {name.replace("-", "_") for name in COMMANDS}


@pytest.mark.parametrize("source", sorted(COMMANDS))
def test_options_of_a_page_exist(source: str) -> None:
    known = {option for parameter in COMMANDS[source].params for option in parameter.opts}
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page(source)))
    assert mentioned - known - OTHER_TOOLS == set()
    own = {f"--{p.name.replace('_', '-')}" for p in COMMANDS[source].params} & known
    common = {f"--{p.name.replace('_', '-')}" for p in COMMANDS["nifti"].params} - {"--labels", "--channel"}
    assert own - common - mentioned == set(), "an option of the source's own that its page leaves out"


@pytest.mark.parametrize("source", sorted(COMMANDS))
def test_a_page_shows_a_real_session(source: str) -> None:
    assert re.search(rf"^\$ ctnet convert {source} ", page(source), re.MULTILINE)
    assert "refused\n" in page(source)


def test_a_script_shows_its_help() -> None:
    script = ROOT / "dataset_conversion/convert_cardiac_sax.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "M&Ms" in done.stdout
