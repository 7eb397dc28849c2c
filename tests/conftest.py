"""Fixtures shared by all tests: private nnU-Net folders and few processes.

nnU-Net reads its process counts when it is imported, so they are set here, at the top of the first module that
pytest loads; the three folders are read at each use and are set by a fixture that every test gets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.update(
    nnUNet_n_proc_DA="0",
    nnUNet_def_n_proc="1",
    nnUNet_compile="f",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS="1",
)

# The longest files: begun first, they leave no process waiting for another at the end.
FIRST = ("test_demo_command.py", "test_tutorial.py", "test_slurm.py")
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class NnunetEnv:
    """Three fresh folders; ``environ`` is what a child process needs to see the same ones."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        return self.root / "nnUNet_results"

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, **{name: str(self.root / name) for name in FOLDERS}}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)


def _create(root: Path) -> NnunetEnv:
    for name in FOLDERS:
        (root / name).mkdir(parents=True)
    return NnunetEnv(root)


@pytest.fixture(scope="session", autouse=True)
def nnunet_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NnunetEnv]:
    """The session's nnU-Net folders, in ``os.environ`` too; autouse, so that no test reaches a user's own."""
    env = _create(tmp_path_factory.mktemp("nnunet"))
    patch = pytest.MonkeyPatch()
    for name in FOLDERS:
        patch.setenv(name, str(env.root / name))
    yield env
    patch.undo()


@pytest.fixture
def fresh_nnunet_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NnunetEnv:
    """Folders of this test alone, for a test that changes a dataset."""
    env = _create(tmp_path / "nnunet")
    for name in FOLDERS:
        monkeypatch.setenv(name, str(env.root / name))
    return env
