"""``ctnet demo`` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ctnet_nnunet.demo.records import FILE_NAME
from ctnet_nnunet.demo.run import WRITTEN
from ctnet_nnunet.process import find_program
from tests.warm_commands import warm_commands


def _demo(folder: Path, *options: str, program: str | Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without anything of nnU-Net in its environment.

    ``program``: a warm one; what nnU-Net reads when it is imported, the server of these has from the tests' own.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    command = [str(program or find_program("ctnet")), "demo", "--out", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("mine")

    result = _demo(path)

    assert result.returncode == 2
    assert result.stderr.strip().splitlines() == [f"ctnet: error: {path} is a file; give a folder with --out"]


@pytest.mark.parametrize("option", [(), ("--restart",)])
def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path, option: tuple[str, ...]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "thesis.txt").write_text("mine")

    result = _demo(tmp_path, *option)

    assert result.returncode == 2
    assert "holds other files" in result.stderr
    assert (tmp_path / "logs" / "thesis.txt").read_text() == "mine"


def test_quick_and_full_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({"settings": "full", "runs": []}))

    result = _demo(tmp_path, "--quick")

    assert result.returncode == 2
    assert "holds a full demo" in result.stderr


def test_termination_ends_the_running_command_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = subprocess.Popen(
        [find_program("ctnet"), "demo", "--quick", "--out", str(folder)], stderr=subprocess.PIPE, text=True
    )
    log = folder / "logs" / "preprocess.txt"
    deadline = time.monotonic() + 300
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert log.exists()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert json.loads((folder / FILE_NAME).read_text())["runs"][-1]["exit_status"] is None


@pytest.mark.slow
def test_the_whole_way_and_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    with TemporaryDirectory() as place, warm_commands(Path(place)) as commands:
        first = _demo(folder, "--quick", program=commands / "ctnet")

    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.strip().splitlines()[-1] == f"Report: {folder / 'report.html'}"
    assert "mean ± sd" in first.stdout
    report = (folder / "report.html").read_text()
    assert report.count("data:image/svg+xml;base64,") == 8 * 2 + 2  # cases × structures, and two figures of curves
    assert str(tmp_path) not in report
    commands = [run["line"].split()[0] for run in json.loads((folder / FILE_NAME).read_text())["runs"]]
    assert commands == [
        "nnUNetv2_plan_and_preprocess", "ctnet", "ctnet", *["nnUNetv2_train"] * 6, "nnUNetv2_predict",
    ]  # fmt: skip
    assert {p.name for p in folder.iterdir()} == {p.name for p in WRITTEN} | {".lock"}

    second = _demo(folder, "--quick")

    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("done before") == 10
    assert sys.version.split()[0] in (folder / "report.html").read_text()
