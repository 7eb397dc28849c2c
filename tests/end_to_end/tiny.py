"""Tiny datasets, plans and trainings: seconds on two cores, through nnU-Net's own code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import NnunetEnv
from tests.synthetic import make_dataset, plan_and_preprocess

TRAINER, PRETRAINER = "nnUNetTrainerCTNet", "nnUNetTrainerCTNetPretrain"
SMALL = (
    "features_base=4",
    "batch_size=2",
    "transformer.embed_dim=24",
    "transformer.depth=1",
    "transformer.heads=2",
    "mask_block=1",
)
SHORT = ("epochs=2", "iterations=2", "val_iterations=1")


@dataclass(frozen=True)
class Tiny:
    """A synthetic dataset in the session's nnU-Net folders, and where training writes."""

    env: NnunetEnv
    id: int
    name: str
    configuration: str = "3d_fullres"
    plans: str = "CTNetPlans"

    @property
    def dataset(self) -> str:
        return f"Dataset{self.id:03d}_{self.name}"

    @property
    def raw(self) -> Path:
        return self.env.raw / self.dataset

    @property
    def preprocessed(self) -> Path:
        return self.env.preprocessed / self.dataset

    @property
    def plans_file(self) -> Path:
        return self.preprocessed / f"{self.plans}.json"

    def fold(self, fold: int | str, trainer: str = TRAINER) -> Path:
        return self.env.results / self.dataset / f"{trainer}__{self.plans}__{self.configuration}" / f"fold_{fold}"

    def pretrained(self, fold: int | str = "all") -> Path:
        return self.fold(fold, PRETRAINER) / "checkpoint_final.pth"

    def train(self, fold: int | str, trainer: str = TRAINER, *more: str | Path) -> tuple[str | Path, ...]:
        """The words of a training command."""
        words = ("nnUNetv2_train", str(self.id), self.configuration, str(fold), "-tr", trainer, "-p", self.plans)
        return (*words, "-device", "cpu", *more)

    def predict(
        self, scans: Path, out: Path, folds: Sequence[int | str], trainer: str = TRAINER
    ) -> tuple[str | Path, ...]:
        """The words of a prediction command without worker processes."""
        words = ("nnUNetv2_predict", "-i", scans, "-o", out, "-d", str(self.id), "-c", self.configuration)
        alone = ("-npp", "0", "-nps", "0", "-device", "cpu")
        return (*words, "-tr", trainer, "-p", self.plans, "-f", *map(str, folds), *alone)

    def read_plans(self) -> dict[str, Any]:
        return json.loads(self.plans_file.read_text())

    def change_configuration(self, **values: Any) -> None:
        """Edit the plans file by hand."""
        plans = self.read_plans()
        plans["configurations"][self.configuration].update(values)
        self.plans_file.write_text(json.dumps(plans))


def settings(patch_size: Sequence[int], *more: str) -> list[str]:
    """``--set`` options for ``ctnet plan``; a later one of ``more`` wins."""
    chosen = dict(item.split("=", 1) for item in (*SMALL, *SHORT, *more))
    chosen["patch_size"] = json.dumps(list(patch_size))
    return [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]


def prepare(
    env: NnunetEnv,
    number: int,
    name: str,
    *,
    labelled: int = 5,
    unlabelled: int = 2,
    configuration: str = "3d_fullres",
    patch_size: Sequence[int] = (16, 24, 24),
    more: Sequence[str] = (),
    **dataset: Any,
) -> Tiny:
    """Write, plan and preprocess a dataset in this process, through the API behind the commands."""
    from ctnet_nnunet.planning.changes import parse_assignments
    from ctnet_nnunet.planning.write import write_plan
    from ctnet_nnunet.unlabeled.preprocess import preprocess_unlabeled

    tiny = Tiny(env, number, name, configuration)
    make_dataset(env.raw, number, name, labelled, unlabelled, n_test=1, seed=number, **dataset)
    plan_and_preprocess(number, [configuration])
    write_plan(number, configuration, "s", changes=parse_assignments(settings(patch_size, *more)[1::2]))
    if unlabelled:
        preprocess_unlabeled(number, configuration, tiny.plans, processes=0)
    return tiny
