"""``ctnet doctor``: every fault is named with its remedy, and a sound setup is all ok."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ctnet_nnunet.doctor import lookup, machine, nnunet
from ctnet_nnunet.doctor import memory as memory_module
from ctnet_nnunet.doctor.check import Check
from ctnet_nnunet.shim_path import SHIM_FOLDER, VARIABLE, trainer_names
from tests.conftest import NnunetEnv

SCRIPTS = sysconfig.get_path("scripts")


def _doctor(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ctnet_nnunet.cli.main", "doctor"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_a_sound_setup_is_all_ok(fresh_nnunet_env: NnunetEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([SCRIPTS, os.environ["PATH"]])
    process = _doctor({**fresh_nnunet_env.environ, "PATH": path, VARIABLE: str(SHIM_FOLDER)})
    lines = process.stdout.splitlines()
    # The machine that runs the tests may be short of memory or disk; everything else must be sound.
    faults = [line for line in lines if not line.startswith("ok   ") and " GiB free" not in line]
    assert faults == [], process.stderr
    for name in trainer_names():
        assert any(line.startswith(f"ok   {name}: ctnet_nnunet.trainers.") for line in lines)
    assert process.returncode == (0 if all(line.startswith("ok   ") for line in lines) else 2)


def test_a_bare_environment_names_every_remedy(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    process = _doctor(environ)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr + process.stdout
    faults = {line[5:].split(":")[0] for line in process.stdout.splitlines() if line.startswith("fix  ")}
    assert {"nnUNetv2_train", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", VARIABLE} <= faults
    assert set(trainer_names()) <= faults
    assert 'eval "$(ctnet env)"' in process.stdout


def test_a_check_is_one_line() -> None:
    assert Check("name", "there").line() == "ok   name: there"
    assert Check("name", "gone", "fetch it").line() == "fix  name: gone -> fetch it"


def test_the_command_of_another_environment_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / "bin"
    foreign.mkdir()
    command = foreign / "nnUNetv2_train"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(foreign), SCRIPTS]))
    (check,) = nnunet.train_command()
    assert not check.ok
    assert str(command) in check.found
    assert SCRIPTS in check.remedy
    monkeypatch.setenv("PATH", os.pathsep.join([SCRIPTS, str(foreign)]))
    assert nnunet.train_command()[0].ok


def test_folders_unset_missing_a_file_or_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "missing"))
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("nnUNet_results", str(file))
    found = {check.name: check for check in nnunet.folders()}
    assert found["nnUNet_raw"].found == "not set"
    assert "does not exist" in found["nnUNet_preprocessed"].found
    assert "is no folder" in found["nnUNet_results"].found
    assert not any(check.ok for check in found.values())


def test_a_folder_that_refuses_a_file_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setattr(nnunet.tempfile, "TemporaryFile", refuse)
    assert "cannot be written" in nnunet.folders()[0].found


def test_an_unsupported_version_is_a_fault_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctnet_nnunet.nnunet_version.installed_nnunet_version", lambda: "2.9.0")
    (check,) = nnunet.version()
    assert "site-packages" in check.found or "dist-packages" in check.found
    assert "pip install" in check.remedy


def test_a_variable_without_our_shim_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert not lookup.shim()[0].ok
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(tmp_path), str(SHIM_FOLDER)]))
    assert lookup.shim()[0].ok


def test_a_foreign_class_of_our_name_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = trainer_names()[0]
    base = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    (tmp_path / "foreign.py").write_text(f"from {base} import nnUNetTrainer\nclass {name}(nnUNetTrainer): pass\n")
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(tmp_path), str(SHIM_FOLDER)]))
    found = {check.name: check for check in lookup.trainers()}
    assert "another class is found first" in found[name].found
    assert all(found[other].ok for other in trainer_names() if other != name)


def test_too_little_memory_or_disk_is_a_fault(nnunet_env: NnunetEnv) -> None:
    assert machine.memory(least=0)[0].ok
    assert not machine.memory(least=2**60)[0].ok
    assert all(check.ok for check in machine.disk(least=0))
    faults = machine.disk(least=2**60)
    assert len(faults) == 3
    assert not any(check.ok for check in faults)


@pytest.fixture
def fake_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB available, whose control groups the test fills in."""
    (tmp_path / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    (tmp_path / "cgroup").write_text("0::/box/job\n")
    monkeypatch.setattr(memory_module, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory_module, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(memory_module, "CGROUPS", tmp_path / "groups")
    return tmp_path


def test_memory_of_a_machine_without_limits(fake_proc: Path) -> None:
    assert memory_module.available_bytes() == 8 * 1024**3


def test_memory_of_a_parents_limit_in_version_2(fake_proc: Path) -> None:
    job = fake_proc / "groups" / "box" / "job"
    job.mkdir(parents=True)
    (job / "memory.max").write_text("max\n")
    (job / "memory.current").write_text("1000\n")
    (job.parent / "memory.max").write_text("3000\n")
    (job.parent / "memory.current").write_text("2000\n")
    (job.parent / "memory.stat").write_text("anon 5\ninactive_file 500\n")
    assert memory_module.available_bytes() == 1500


def test_memory_of_version_1(fake_proc: Path) -> None:
    (fake_proc / "cgroup").write_text("5:cpu:/\n4:memory:/job\n")
    job = fake_proc / "groups" / "memory" / "job"
    job.mkdir(parents=True)
    (job / "memory.limit_in_bytes").write_text("4000\n")
    (job / "memory.usage_in_bytes").write_text("1000\n")
    assert memory_module.available_bytes() == 3000


def test_memory_where_the_system_does_not_tell(fake_proc: Path) -> None:
    (fake_proc / "meminfo").unlink()
    assert memory_module.available_bytes() is None
    assert machine.memory()[0].ok
