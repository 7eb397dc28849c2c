"""docs/tutorial.md is run as it stands: every ``bash`` block, in order, in one shell in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from tests.warm_commands import warm_commands

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
MODEL = Path("nnUNet_results/Dataset501_Hippocampus/nnUNetTrainerCTNet__CTNetPlans__3d_fullres")
# Numbers, times and paths of the page's sample output differ from run to run; the words around them do not.
VARIABLE = re.compile(r"[-+]?\d[\d.,:eE-]*|/\S*")
TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ")


def blocks(kind: str) -> list[str]:
    """The page's fenced blocks of a language."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shell_environment(commands: Path) -> dict[str, str]:
    """A new user's: commands, and no variable of nnU-Net's but what the commands' server was imported with."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    kept["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that don't spin: the machine may be busy with other tests
    return {**kept, "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), kept.get("PATH", "")])}


@pytest.mark.skipif(os.name == "nt", reason="the page is written for a POSIX shell")
def test_the_tutorial_runs_as_written(tmp_path: Path) -> None:
    script = "\n".join(["set -euo pipefail", *blocks("bash")])
    with TemporaryDirectory() as folder, warm_commands(Path(folder)) as commands:
        environment = shell_environment(commands)
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    check_results(tmp_path)
    check_sample_output(done.stdout, tmp_path)


def check_results(folder: Path) -> None:
    """What the page says that there is in the end."""
    for fold in range(5):
        checkpoint = torch.load(folder / MODEL / f"fold_{fold}" / "checkpoint_final.pth", weights_only=True)
        assert checkpoint["current_epoch"] == 2
        assert (folder / MODEL / f"fold_{fold}" / "validation" / "summary.json").is_file()
        assert (folder / MODEL / f"fold_{fold}" / "progress.png").is_file()
    scans = {file.name.replace("_0000", "") for file in (folder / "new_scans").iterdir()}
    assert len(scans) == 8
    assert scans <= {file.name for file in (folder / "predictions").iterdir()}
    assert json.loads((folder / "scores.json").read_text())["mean"].keys() == {"1", "2"}


def check_sample_output(printed: str, folder: Path) -> None:
    """Each line of the page's sample output is printed by the commands, apart from its numbers and paths."""
    dataset = (folder / "nnUNet_raw/Dataset501_Hippocampus/dataset.json").read_text()
    tree, *others = blocks("text")
    for line in tree.splitlines():
        for name in re.findall(r"\S+\.(?:nii\.gz|json)", line):
            assert list((folder / "nnUNet_raw/Dataset501_Hippocampus").rglob(name)), name
    known = {VARIABLE.sub("#", TIMESTAMP.sub("", line)).strip() for line in (printed + dataset).splitlines()}
    for block in others:
        for line in block.splitlines():
            if line.strip() and "…" not in line:
                assert VARIABLE.sub("#", line).strip() in known, line
