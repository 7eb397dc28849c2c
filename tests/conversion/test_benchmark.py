"""``ctnet benchmark convert`` measures a real conversion; the figures themselves depend on the machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ctnet_nnunet.cli.main import app
from ctnet_nnunet.errors import SetupError


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads a worker's peak memory from /proc")
def test_a_small_run(tmp_path: Path) -> None:
    options = ["--cases", "3", "--size", "24,20,16", "-np", "1", "--out", str(tmp_path / "figures.json")]
    done = CliRunner().invoke(app, ["benchmark", "convert", *options])
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["cases"] == 3
    assert 0 < figures["bare_seconds"] < figures["seconds"]
    assert 0 < 3 * figures["worker_seconds"] < figures["seconds"]
    assert 30 < figures["peak_worker_bytes"] / 2**20 < 2000
    assert "| 3 | 24×20×16 | 1 |" in done.output


def test_an_unusable_size() -> None:
    done = CliRunner().invoke(app, ["benchmark", "convert", "--size", "24,20"])
    assert isinstance(done.exception, SetupError)
