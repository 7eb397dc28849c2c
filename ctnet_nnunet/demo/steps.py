"""The demo's way as a list of commands, relative to the demo's folder: the same that a user types."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.demo.dataset import DATASET_ID, DATASET_NAME, NEW_SCANS
from ctnet_nnunet.demo.settings import DemoSettings

CONFIGURATION = "3d_fullres"
PLANS = "CTNetPlans"
PRETRAINER, TRAINER = "nnUNetTrainerCTNetPretrain", "nnUNetTrainerCTNet"
FOLDS = ("0", "1", "2", "3", "4")
PREDICTIONS = Path("predictions")

RAW, PREPROCESSED, RESULTS = Path("nnUNet_raw"), Path("nnUNet_preprocessed"), Path("nnUNet_results")
"""nnU-Net's three folders."""


@dataclass(frozen=True)
class Training:
    """What sets a training apart from other steps: it has epochs, and an interrupted one goes on from its checkpoint.

    Attributes:
        folder: where the trainer writes, relative to the demo's folder.
        epochs: how many it runs.
        resume: the command that goes on with ``--c``.
    """

    folder: Path
    epochs: int
    resume: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its log file and its record.
        title: what it does, for people.
        command: the arguments, as typed.
        expected_seconds: on two cores; only the remaining time depends on it.
        outputs: what it writes, relative to the demo's folder; removed before the step is run anew.
    """

    name: str
    title: str
    command: tuple[str, ...]
    expected_seconds: float
    outputs: tuple[Path, ...] = ()
    training: Training | None = None


def command_line(command: tuple[str, ...]) -> str:
    """The command as it would be typed."""
    return shlex.join(command)


def trainer_folder(trainer: str, fold: str) -> Path:
    """Where nnU-Net writes a fold, relative to the demo's folder."""
    return RESULTS / DATASET_NAME / f"{trainer}__{PLANS}__{CONFIGURATION}" / f"fold_{fold}"


def demo_steps(settings: DemoSettings) -> list[Step]:
    """Everything from the raw dataset to the predictions on new scans."""
    seconds = settings.expected_seconds
    return [
        *_preparation(settings),
        _pretraining(settings, seconds["pretrain"]),
        *(_fold(settings, fold, seconds["fold"]) for fold in FOLDS),
        Step(
            "predict",
            "Predict the new scans with all five folds",
            (
                *("nnUNetv2_predict", "-i", NEW_SCANS.as_posix(), "-o", PREDICTIONS.as_posix()),
                *("-d", str(DATASET_ID), "-c", CONFIGURATION, "-tr", TRAINER, "-p", PLANS, "-f", *FOLDS),
                *("-npp", "1", "-nps", "1", "-device", "cpu"),
                *(() if settings.mirrors else ("--disable_tta",)),
            ),
            seconds["predict"],
            outputs=(PREDICTIONS,),
        ),
    ]


def _preparation(settings: DemoSettings) -> list[Step]:
    dataset = ("-d", str(DATASET_ID), "-c", CONFIGURATION)
    preprocessed = PREPROCESSED / DATASET_NAME
    values = [word for value in settings.values for word in ("--set", value)]
    seconds = settings.expected_seconds
    return [
        Step(
            "preprocess",
            "Fingerprint, plan and preprocess the labelled scans",
            ("nnUNetv2_plan_and_preprocess", *dataset, "-npfp", "1", "-np", "1", "--verify_dataset_integrity"),
            seconds["preprocess"],
            outputs=(preprocessed,),
        ),
        Step(
            "plan",
            "Plan CTNet",
            ("ctnet", "plan", *dataset, "--preset", settings.preset, *values),
            seconds["plan"],
            outputs=(preprocessed / f"{PLANS}.json",),
        ),
        Step(
            "preprocess_unlabeled",
            "Preprocess the unlabelled scans",
            ("ctnet", "preprocess-unlabeled", *dataset, "-p", PLANS, "-np", "1"),
            seconds["preprocess_unlabeled"],
        ),
    ]


def _training_step(step: str, title: str, command: tuple[str, ...], extra: tuple[str, ...], training: Training,
                   seconds: float) -> Step:  # fmt: skip
    return Step(step, title, (*command, *extra, "-device", "cpu"), seconds, (training.folder,), training)


def _pretraining(settings: DemoSettings, seconds: float) -> Step:
    command = ("nnUNetv2_train", str(DATASET_ID), CONFIGURATION, "all", "-tr", PRETRAINER, "-p", PLANS)
    folder = trainer_folder(PRETRAINER, "all")
    training = Training(folder, settings.pretrain_epochs, (*command, "--c", "-device", "cpu"))
    return _training_step("pretrain", "Pretrain on all scans, without labels", command, (), training, seconds)


def _fold(settings: DemoSettings, fold: str, seconds: float) -> Step:
    command = ("nnUNetv2_train", str(DATASET_ID), CONFIGURATION, fold, "-tr", TRAINER, "-p", PLANS)
    weights = trainer_folder(PRETRAINER, "all") / "checkpoint_final.pth"
    training = Training(trainer_folder(TRAINER, fold), settings.epochs, (*command, "--c", "-device", "cpu"))
    extra = ("-pretrained_weights", weights.as_posix())
    return _training_step(f"fold_{fold}", f"Fine-tune fold {fold}", command, extra, training, seconds)
