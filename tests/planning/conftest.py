"""Datasets to plan: one fingerprint extracted by nnU-Net itself, and others written by hand for larger scans."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import dummy
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NnunetEnv
from tests.synthetic import make_dataset

#: A network that is planned in a moment.
TINY = {"features_base": 4, "transformer.depth": 1, "transformer.embed_dim": 12, "transformer.heads": 3}


@dataclass(frozen=True)
class Dataset:
    """A dataset of a test's own, ready for planning."""

    id: int
    raw: Path
    preprocessed: Path
    results: Path

    def file(self, name: str = "CTNetPlans") -> Path:
        return self.preprocessed / f"{name}.json"

    def plans(self, name: str = "CTNetPlans") -> dict[str, Any]:
        return json.loads(self.file(name).read_text())

    def configuration(self, configuration: str = "3d_fullres", name: str = "CTNetPlans") -> dict[str, Any]:
        return self.plans(name)["configurations"][configuration]

    def files(self) -> list[str]:
        """Everything in the preprocessed folder, temporary files included."""
        return sorted(path.name for path in self.preprocessed.iterdir())

    def train(self, configuration: str, name: str = "CTNetPlans") -> Path:
        """Leave behind what a training does."""
        folder = self.results / self.raw.name / f"nnUNetTrainerCTNet__{name}__{configuration}" / "fold_0"
        folder.mkdir(parents=True)
        (folder / "checkpoint_latest.pth").write_bytes(b"")
        return folder


@pytest.fixture(autouse=True)
def threads_for_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net lists file names in twelve worker processes; threads do it in no time."""
    real = multiprocessing.get_context
    monkeypatch.setattr("multiprocessing.get_context", lambda how=None: dummy if how == "spawn" else real(how))
    monkeypatch.setattr("nnunetv2.utilities.utils.Pool", dummy.Pool)


@pytest.fixture(scope="session")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnUNet_raw and nnUNet_preprocessed with fingerprints: 540, which stock has planned, 541 with thick slices."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    root = tmp_path_factory.mktemp("planning")
    real = multiprocessing.get_context
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (root / name).mkdir()
            patch.setenv(name, str(root / name))
        patch.setenv("nnUNet_n_proc_DA", "1")  # stock planning refuses 0
        patch.setattr("multiprocessing.get_context", lambda how=None: dummy if how == "spawn" else real(how))
        patch.setattr("nnunetv2.utilities.utils.Pool", dummy.Pool)
        make_dataset(root / "nnUNet_raw", 540, "plain", 2, 0)
        make_dataset(root / "nnUNet_raw", 541, "thick", 2, 0, spacing=(1.0, 1.0, 4.0), shape=(28, 24, 10))
        api.extract_fingerprints([540, 541], num_processes=1, show_progress_bar=False)
        api.plan_experiments([540])
    return root


@pytest.fixture
def dataset_of(extracted: Path, fresh_nnunet_env: NnunetEnv) -> Callable[[int], Dataset]:
    """A copy of one of the extracted datasets, in folders of this test alone."""

    def copy(number: int) -> Dataset:
        env = fresh_nnunet_env
        name = next((extracted / "nnUNet_raw").glob(f"Dataset{number}_*")).name
        for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
            shutil.copytree(extracted / folder / name, env.root / folder / name)
        return Dataset(number, env.raw / name, env.preprocessed / name, env.results)

    return copy


@pytest.fixture
def dataset(dataset_of: Callable[[int], Dataset]) -> Dataset:
    return dataset_of(540)


@pytest.fixture
def of_size(dataset: Dataset) -> Callable[..., Dataset]:
    """The plain dataset, with a fingerprint that claims other sizes."""

    def rewrite(shape: Sequence[int], spacing: Sequence[float] = (1.0, 1.0, 1.0), count: int = 60) -> Dataset:
        file = dataset.preprocessed / "dataset_fingerprint.json"
        fingerprint = json.loads(file.read_text())
        fingerprint |= {"shapes_after_crop": [list(shape)] * count, "spacings": [list(spacing)] * count}
        file.write_text(json.dumps(fingerprint))
        description = json.loads((dataset.raw / "dataset.json").read_text())
        (dataset.raw / "dataset.json").write_text(json.dumps({**description, "numTraining": count}))
        return dataset

    return rewrite
