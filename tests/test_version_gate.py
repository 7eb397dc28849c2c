"""An nnunetv2 of another version is refused with one sentence, in Python and under the stock command."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from ctnet_nnunet import nnunet_version
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.shim_path import SHIM_FOLDER

TRAIN = "from nnunetv2.run.run_training import run_training_entry; run_training_entry()"


def test_the_installed_version_is_accepted() -> None:
    nnunet_version.require_supported_nnunet()


@pytest.mark.parametrize("version", ["2.8.1", "2.8.2", "2.8.10", "2.8.2.dev0", "2.8.1+local"])
def test_supported(version: str) -> None:
    assert nnunet_version.is_supported(version)


@pytest.mark.parametrize("version", ["2.8.0", "2.7.9", "2.9", "2.9.0.dev1", "2.8.1rc1", "3.0", "1.7", "no version"])
def test_unsupported(version: str) -> None:
    assert not nnunet_version.is_supported(version)


@pytest.mark.parametrize("version", ["2.7.0", "2.9.1", None])
def test_refused_in_one_line_with_the_remedy(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnunet_version, "installed_nnunet_version", lambda: version)
    with pytest.raises(SetupError) as refused:
        nnunet_version.require_supported_nnunet()
    message = str(refused.value)
    assert "\n" not in message
    assert "pip install" in message
    assert (version or "not installed") in message


def test_missing_nnunet_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert nnunet_version.installed_nnunet_version() is None


@pytest.mark.parametrize(
    "arguments",
    [["plan", "-d", "1"], ["preprocess-unlabeled", "-d", "1", "-c", "2d"], ["demo"], ["benchmark", "speed"]],
)
def test_our_commands_end_in_the_sentence_and_status_2(
    arguments: list[str], newer_nnunet: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "ctnet_nnunet.cli.main", *arguments]
    process = subprocess.run(command, env=newer_nnunet, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("ctnet: error: nnunetv2 2.9.0 is installed")
    assert len(process.stderr.splitlines()) == 1


def test_trainers_refuse_before_they_import_nnunet(newer_nnunet: dict[str, str]) -> None:
    script = (
        "import sys\ntry:\n    import ctnet_nnunet.trainers.ctnet\n"
        "except Exception as error:\n    print(type(error).__name__, 'nnunetv2' in sys.modules)"
    )
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, env=newer_nnunet, capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["SetupError", "False"]


@pytest.fixture
def newer_nnunet(tmp_path: Path) -> dict[str, str]:
    """Environment of a process in which the metadata of nnunetv2 says 2.9.0; its code is the installed one."""
    info = tmp_path / "nnunetv2-2.9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.9.0\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path), "nnUNet_extTrainer": str(SHIM_FOLDER)}


def test_the_stock_command_ends_in_the_sentence_and_status_2(newer_nnunet: dict[str, str]) -> None:
    arguments = ["1", "2d", "0", "-tr", "nnUNetTrainerCTNet", "-device", "cpu"]
    process = subprocess.run(
        [sys.executable, "-c", TRAIN, *arguments], env=newer_nnunet, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert process.stderr.strip().splitlines()[-1].startswith("ctnet: error: nnunetv2 2.9.0 is installed")
    assert "Traceback" not in process.stderr
