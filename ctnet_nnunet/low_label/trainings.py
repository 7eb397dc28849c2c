"""The trainings of an experiment as commands of nnU-Net, and whether each is finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.low_label.arms import Arm, Network, Pretraining, Selection
from ctnet_nnunet.low_label.cases import Draw
from ctnet_nnunet.low_label.experiment import POOL_FOLD, Experiment
from ctnet_nnunet.low_label.plans import pretraining_plans_name

RESULTS = "nnUNet_results"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth")


@dataclass(frozen=True)
class Training:
    """One run of ``nnUNetv2_train``.

    Attributes:
        name: Of its log, its scores and its time.
        title: For people.
        trainer, plans, fold: Of the command.
        folder: Where it writes.
        weights: What it starts from, or None.
        arm: The arm it is a figure of, None for a pretraining.
        draw: The draw, None for a pretraining and for the ceiling.
    """

    name: str
    title: str
    trainer: str
    plans: str
    fold: int
    folder: Path
    weights: Path | None = None
    arm: Arm | None = None
    draw: Draw | None = None

    @property
    def finished(self) -> bool:
        """A pretraining has its last checkpoint, a supervised training its validation's whole summary."""
        if self.arm is None:
            return (self.folder / "checkpoint_final.pth").is_file()
        try:
            summary = json.loads((self.validation / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return "metric_per_case" in summary

    @property
    def validation(self) -> Path:
        """Where nnU-Net predicts the fold's validation cases, which are the test cases here."""
        return self.folder / "validation"

    @property
    def last_checkpoint(self) -> Path:
        return self.folder / "checkpoint_final.pth"

    def command(self, experiment: Experiment, device: str) -> tuple[str, ...]:
        """As typed; goes on from a checkpoint where there is one."""
        settings = experiment.settings
        words: tuple[str, ...] = ("nnUNetv2_train", settings.dataset, settings.configuration, str(self.fold))
        words += ("-tr", self.trainer, "-p", self.plans, "-device", device)
        if any((self.folder / name).is_file() for name in CHECKPOINTS):
            return (*words, "--c")
        return words if self.weights is None else (*words, "-pretrained_weights", str(self.weights))


def pretrainings(experiment: Experiment, selection: Selection) -> list[Training]:
    """One for each network and set of tasks that an arm wants, on the images of the pool."""
    wanted = {(arm.network, arm.pretraining.name): arm for arm in selection.arms if arm.pretraining is not None}
    return [_pretraining(experiment, arm.network, arm.pretraining) for arm in wanted.values() if arm.pretraining]


def supervised(experiment: Experiment, selection: Selection, draws: Sequence[Draw]) -> list[Training]:
    """Draw by draw all arms, so that arms can be compared long before the end; the ceiling comes last."""
    found = [_supervised(experiment, arm, draw) for draw in draws for arm in selection.of_draws()]
    return found + [_supervised(experiment, arm, None) for arm in selection.arms if arm.all_labels]


def _supervised(experiment: Experiment, arm: Arm, draw: Draw | None) -> Training:
    fold = POOL_FOLD if draw is None else experiment.fold(draw)
    which = "all" if draw is None else f"{draw.labels}_labels_draw_{draw.number}"
    many = experiment.settings.most_labels if draw is None else draw.labels
    title = f"{arm.name}, {many} label{'s' if many != 1 else ''}{'' if draw is None else f', draw {draw.number}'}"
    weights = Path(arm.weights) if arm.weights else None
    if arm.pretraining is not None:
        weights = _pretraining(experiment, arm.network, arm.pretraining).last_checkpoint
    folder = _folder(experiment, arm.trainer, arm.plans, fold)
    return Training(f"{arm.plans}_{which}", title, arm.trainer, arm.plans, fold, folder, weights, arm, draw)


def _pretraining(experiment: Experiment, network: Network, pretraining: Pretraining) -> Training:
    plans = pretraining_plans_name(network, pretraining)
    folder = _folder(experiment, pretraining.trainer, plans, POOL_FOLD)
    title = f"pretraining of {'CTNet' if network == 'ctnet' else 'the U-Net'}: {pretraining.title}"
    return Training(plans, title, pretraining.trainer, plans, POOL_FOLD, folder)


def _folder(experiment: Experiment, trainer: str, plans: str, fold: int) -> Path:
    settings = experiment.settings
    model = f"{trainer}__{plans}__{settings.configuration}"
    return experiment.folder / RESULTS / settings.dataset / model / f"fold_{fold}"
