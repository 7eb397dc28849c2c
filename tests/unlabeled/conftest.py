"""Planned synthetic datasets, made once per session; a test that changes one works on a copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NnunetEnv
from tests.synthetic import make_dataset, plan_and_preprocess

#: name → (dataset id, configuration, options of make_dataset)
VARIANTS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "plain": (510, "3d_fullres", {}),
    "two_channels": (511, "3d_fullres", {"channels": 2}),
    "ignore_regions": (512, "3d_fullres", {"ignore": True, "regions": True, "labels": ("a", "b")}),
    "ignore": (513, "3d_fullres", {"ignore": True}),
    "two_d": (514, "2d", {"two_d": True}),
    "anisotropic": (515, "2d", {"spacing": (1.0, 1.0, 4.0), "shape": (28, 24, 10)}),
}


@dataclass(frozen=True)
class Planned:
    """A dataset that stock nnU-Net planned and preprocessed, with ``un_000`` … in imagesUn."""

    id: int
    configuration: str
    raw: Path
    preprocessed: Path

    @property
    def images_un(self) -> Path:
        return self.raw / "imagesUn"

    @property
    def folder(self) -> Path:
        return self.preprocessed / f"nnUNetPlans_{self.configuration}_unlabeled"

    @property
    def labelled_folder(self) -> Path:
        return self.preprocessed / f"nnUNetPlans_{self.configuration}"

    @property
    def plans_file(self) -> Path:
        return self.preprocessed / "nnUNetPlans.json"

    def plans(self) -> dict[str, Any]:
        return json.loads(self.plans_file.read_text())

    def change_configuration(self, **values: Any) -> None:
        """Change the plan, as a new planning would."""
        plans = self.plans()
        plans["configurations"][self.configuration].update(values)
        self.plans_file.write_text(json.dumps(plans))


@pytest.fixture(scope="session")
def planned(nnunet_env: NnunetEnv) -> Callable[[str], Planned]:
    """Make a variant on its first use; not to be changed."""
    made: dict[str, Planned] = {}

    def make(variant: str) -> Planned:
        if variant not in made:
            number, configuration, options = VARIANTS[variant]
            with pytest.MonkeyPatch.context() as patch:
                for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
                    patch.setenv(folder, str(nnunet_env.root / folder))
                raw = make_dataset(nnunet_env.raw, number, variant, 3, 3, seed=number, **options)
                made[variant] = Planned(number, configuration, raw, plan_and_preprocess(number, [configuration]))
        return made[variant]

    return make


@pytest.fixture
def copy_of(planned: Callable[[str], Planned], fresh_nnunet_env: NnunetEnv) -> Callable[[str], Planned]:
    """A variant's copy in folders of this test alone."""

    def copy(variant: str) -> Planned:
        original = planned(variant)
        raw, preprocessed = (
            Path(shutil.copytree(source, root / source.name))
            for source, root in (
                (original.raw, fresh_nnunet_env.raw),
                (original.preprocessed, fresh_nnunet_env.preprocessed),
            )
        )
        return Planned(original.id, original.configuration, raw, preprocessed)

    return copy


@pytest.fixture
def dataset(copy_of: Callable[[str], Planned]) -> Planned:
    """A private copy of the plain dataset."""
    return copy_of("plain")
