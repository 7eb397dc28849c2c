"""The wheel: nothing but ctnet_nnunet at its top level, all data inside, and the shim works from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.shim_facts import look_up

ROOT = Path(__file__).resolve().parent.parent
MAPPED = {"plans": "ctnet_nnunet/plans", "dataset_conversion": "ctnet_nnunet/dataset_conversion"}
SOURCES = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "ctnet_nnunet", *MAPPED]
DATA = {".json", ".csv", ".gz", ".txt", ".html", ".css", ".j2", ".md"}


def _pip(*arguments: str) -> None:
    # No index, no isolation: what the environment holds is enough, and the test needs no network.
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-index", "--disable-pip-version-check", "-q"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build folder left in the tree would bring files that the sources no longer have."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).is_file():
            shutil.copy2(ROOT / name, source / name)
    _pip("wheel", "--no-build-isolation", "-w", str(out), str(source))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, as pip unpacks it; PYTHONPATH puts it before the present installation."""
    target = tmp_path_factory.mktemp("site")
    _pip("install", "--target", str(target), str(wheel))
    return target


def _shipped(folder: str, place: str) -> set[str]:
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {f"{place}/{path.relative_to(ROOT / folder).as_posix()}" for path in files if path.suffix in DATA | {".py"}}


def test_the_top_level_is_ctnet_nnunet_alone(members: set[str]) -> None:
    top = {name.split("/")[0] for name in members}
    assert {name for name in top if not name.endswith(".dist-info")} == {"ctnet_nnunet"}
    assert len(top) == 2


def test_every_module_and_data_file_is_inside(members: set[str]) -> None:
    assert _shipped("ctnet_nnunet", "ctnet_nnunet") - members == set()
    assert "ctnet_nnunet/nnunet_shim/ctnet_trainers.py" in members
    assert "ctnet_nnunet/py.typed" in members


@pytest.mark.parametrize("folder", [folder for folder in MAPPED if (ROOT / folder).is_dir()])
def test_the_mapped_folders_are_inside_and_hold_no_logic(folder: str, members: set[str]) -> None:
    expected = _shipped(folder, MAPPED[folder])
    assert expected
    assert expected - members == set()


def test_nothing_that_is_not_in_the_sources(members: set[str]) -> None:
    expected = _shipped("ctnet_nnunet", "ctnet_nnunet") | {"ctnet_nnunet/py.typed"}
    for folder, place in MAPPED.items():
        expected |= _shipped(folder, place) if (ROOT / folder).is_dir() else set()
    assert {name for name in members if ".dist-info/" not in name} - expected == set()


def test_the_metadata_bounds_nnunet_and_names_the_command(wheel: Path, members: set[str]) -> None:
    info = next(name for name in members if name.endswith(".dist-info/METADATA")).rsplit("/", 1)[0]
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"{info}/METADATA").decode()
        commands = archive.read(f"{info}/entry_points.txt").decode()
    bounds = next(line for line in metadata.splitlines() if line.startswith("Requires-Dist: nnunetv2"))
    assert ">=2.8.1" in bounds
    assert "<2.9" in bounds
    assert "ctnet = ctnet_nnunet.cli.main:main" in commands
    assert f"{info}/licenses/LICENSE" in members


@pytest.mark.parametrize("kind", ["wheel", "present installation"])
def test_presets_are_readable_as_package_resources(kind: str, installed: Path, tmp_path: Path) -> None:
    script = (
        "import json, importlib.resources as r, ctnet_nnunet.plans as p;"
        "texts = {x.name: x.read_text() for x in r.files('ctnet_nnunet.plans').iterdir() if x.name.endswith('.json')};"
        "print(json.dumps([p.__file__, {name: json.loads(text) for name, text in texts.items()}]))"
    )
    environ = {**os.environ, "PYTHONPATH": str(installed)} if kind == "wheel" else dict(os.environ)
    process = subprocess.run(
        [sys.executable, "-c", script], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    place, presets = json.loads(process.stdout)
    assert set(presets) == {path.name for path in (ROOT / "plans").glob("*.json")}
    assert (Path(place).is_relative_to(installed)) is (kind == "wheel")


def test_the_three_shim_facts_hold_in_the_wheel(installed: Path) -> None:
    from ctnet_nnunet.shim_path import trainer_names

    facts = look_up(trainer_names(), installed / "ctnet_nnunet" / "nnunet_shim", {"PYTHONPATH": str(installed)})
    assert Path(facts["package"]).is_relative_to(installed)
    for name in trainer_names():
        assert facts[name]["same_at_second_look_up"]
        assert facts[name]["same_as_direct_import"]
        assert facts[name]["same_after_pickle"]
