"""Both stages of cross-modality learning on a few real scans, each left out once: losses, not accuracy.

Real commands in a folder of its own: stage 1 on a fold's training scans, then stage 2 from its weights and from a
Kaiming start, and one branch on all sequences at once, each for equally many iterations and under the same loss and
optimiser. The scans are cropped around their labels, because whole ones would be predicted for longer than they are
trained on.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ctnet_nnunet.errors import DataError, SetupError, TrainingError
from ctnet_nnunet.process import Workplace, last_lines, run_command
from ctnet_nnunet.shim_path import VARIABLE, with_shim

NUMBER, CONFIGURATION = 950, "3d_fullres"
DATASET = f"Dataset{NUMBER}_CrossModality"
STAGE_ONE, STAGE_TWO, ONE_BRANCH = "nnUNetTrainerCMFT", "nnUNetTrainerCMFF", "nnUNetTrainerEarlyFusion"
FROM_STAGE_ONE, KAIMING, EARLY = "CMFF, from CMFT", "CMFF, Kaiming", "U-Net, all sequences at once"
ARMS = {FROM_STAGE_ONE: STAGE_TWO, KAIMING: STAGE_TWO, EARLY: ONE_BRANCH}
TRANSITION_LOSSES = ("loss", "cycle_a", "cycle_b", "adversarial_a", "adversarial_b", "discriminators")
DECIDING_LOSS = {STAGE_TWO: "fused", ONE_BRANCH: "train_loss"}
"""What the log calls the loss of the output that decides: the same loss of one output in every arm."""


@dataclass(frozen=True)
class Runs:
    """What is trained: on ``data`` (folder with images, labels, dataset.json) cropped to ``box``, into ``work``."""

    data: Path
    work: Path
    box: tuple[int, ...]
    patch: tuple[int, ...]
    features: int
    epochs: int
    iterations: int
    learning_rate: float
    seeds: int
    device: str


@dataclass
class Figures:
    """Measured values of one data set; every list has an entry for each seed and fold, in this order.

    Attributes:
        transition: Loss of stage 1 → trainings → its mean over each epoch.
        losses: Arm → trainings → mean over each epoch of the deciding output's loss.
        dice: Arm → trainings → Dice of the left-out scan behind the last epoch.
        pictures: Folders with what the generators made.
    """

    transition: dict[str, list[list[float]]] = field(default_factory=lambda: {name: [] for name in TRANSITION_LOSSES})
    losses: dict[str, list[list[float]]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    dice: dict[str, list[float]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    pictures: list[str] = field(default_factory=list)


def compare_starts(runs: Runs, tell: Callable[[str], None]) -> Figures:
    """Prepare, train every arm with every seed on every fold, and read the figures off the logs.

    Raises:
        DataError: Fewer than two labelled scans.
        SetupError: The work folder is not empty.
        TrainingError: A command failed; its log is named.
    """
    cases = _cases(runs)
    if len(cases) < 2:
        raise DataError(f"{runs.data}: leaving one out takes two labelled scans, there are {len(cases)}")
    place = _prepare(runs)
    _make_dataset(runs, cases)
    dataset = ("-d", str(NUMBER), "-c", CONFIGURATION)
    _do(place, tell, "preprocess", "nnUNetv2_plan_and_preprocess", *dataset, "-npfp", "1", "-np", "1")
    splits = [{"train": [other for other in cases if other != case], "val": [case]} for case in cases]
    (runs.work / "nnUNet_preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))
    figures = Figures()
    for seed in range(runs.seeds):
        settings = ("--preset", "identity", "--name", _plans(seed), *_settings(runs, seed))
        _do(place, tell, f"plan, seed {seed}", "ctnet", "plan", *dataset, *settings)
        for fold in range(len(cases)):
            _one_fold(runs, place, tell, seed, fold, figures)
    return figures


def _one_fold(
    runs: Runs, place: Workplace, tell: Callable[[str], None], seed: int, fold: int, figures: Figures
) -> None:
    """Stage 1 and every arm; the figures grow by one training each."""
    first = _fold(runs, STAGE_ONE, seed, fold)
    _train(runs, place, tell, seed, fold, STAGE_ONE, "stage 1")
    for name, courses in figures.transition.items():
        courses.append(_course(first, name, behind="train loss"))
    figures.pictures.append(str(first / "pictures"))
    for arm, trainer in ARMS.items():
        weights = ("-pretrained_weights", str(first / "checkpoint_final.pth")) if arm == FROM_STAGE_ONE else ()
        _train(runs, place, tell, seed, fold, trainer, arm, *weights)
        folder = _fold(runs, trainer, seed, fold)
        figures.losses[arm].append(_course(folder, DECIDING_LOSS[trainer]))
        figures.dice[arm].append(_dice(folder))
        # The next arm may be of the same trainer.
        folder.rename(runs.work / f"{_file_name(arm)}_seed_{seed}_fold_{fold}")


def _prepare(runs: Runs) -> Workplace:
    if runs.work.exists() and any(runs.work.iterdir()):
        raise SetupError(f"{runs.work}: not empty; give a new folder")
    folders = {name: str(runs.work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir(parents=True)
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    settings = {"nnUNet_compile": "f", "nnUNet_def_n_proc": "1"}
    environment = {**os.environ, **folders, **settings, "PATH": beside, VARIABLE: with_shim(None)}
    return Workplace(runs.work.absolute(), {**environment, **{k: str(Path(v).absolute()) for k, v in folders.items()}})


def _cases(runs: Runs) -> list[str]:
    return sorted(file.name.removesuffix(".nii.gz") for file in (runs.data / "labels").glob("*.nii.gz"))


def _make_dataset(runs: Runs, cases: Sequence[str]) -> None:
    raw = runs.work / "nnUNet_raw" / DATASET
    for part in ("images", "labels"):
        (raw / f"{part}Tr").mkdir(parents=True)
    for case in cases:
        label = sitk.ReadImage(str(runs.data / "labels" / f"{case}.nii.gz"))
        corner, size = _box_around(sitk.GetArrayFromImage(label), runs.box)
        for file in sorted((runs.data / "images").glob(f"{case}_*.nii.gz")):
            cropped = sitk.RegionOfInterest(sitk.ReadImage(str(file)), size, corner)
            sitk.WriteImage(cropped, str(raw / "imagesTr" / file.name), True)
        sitk.WriteImage(sitk.RegionOfInterest(label, size, corner), str(raw / "labelsTr" / f"{case}.nii.gz"), True)
    content = json.loads((runs.data / "dataset.json").read_text(encoding="utf-8"))
    (raw / "dataset.json").write_text(json.dumps({**content, "numTraining": len(cases)}))


def _box_around(label: NDArray[Any], box: Sequence[int]) -> tuple[list[int], list[int]]:
    """A label map (Z, Y, X) and a box in the same order → first voxel and size (X, Y, Z) round the labels' middle."""
    middle = [int(np.median(axis)) for axis in np.nonzero(label)] if label.any() else [n // 2 for n in label.shape]
    size = [min(length, n) for length, n in zip(box, label.shape, strict=True)]
    corner = [min(max(m - s // 2, 0), n - s) for m, s, n in zip(middle, size, label.shape, strict=True)]
    return corner[::-1], size[::-1]


def _plans(seed: int) -> str:
    return f"CTNetPlans_seed_{seed}"


def _settings(runs: Runs, seed: int) -> list[str]:
    rate = runs.learning_rate
    values: dict[str, Any] = {
        "patch_size": list(runs.patch), "features_base": runs.features, "batch_size": 1, "seed": seed,
        "epochs": runs.epochs, "iterations": runs.iterations, "val_iterations": 2,
        "cross_modality.features": runs.features, "cross_modality.pictures_every": max(1, runs.epochs // 4),
        "cmft.learning_rate": rate, "cmff.learning_rate": rate,
    }  # fmt: skip
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def _train(
    runs: Runs,
    place: Workplace,
    tell: Callable[[str], None],
    seed: int,
    fold: int,
    trainer: str,
    arm: str,
    *more: str,
) -> None:
    # Patches this small are drawn faster in the training's own process than workers start.
    calm = Workplace(place.folder, {**place.environment, **({} if runs.device != "cpu" else {"nnUNet_n_proc_DA": "0"})})
    words = ("nnUNetv2_train", str(NUMBER), CONFIGURATION, str(fold), "-tr", trainer, "-p", _plans(seed))
    _do(calm, tell, f"{arm}, seed {seed}, fold {fold}", *words, "-device", runs.device, *more)


def _do(place: Workplace, tell: Callable[[str], None], name: str, *command: str) -> None:
    log = place.folder / "logs" / f"{_file_name(name)}.txt"
    seconds, status = run_command(command, place, log, lambda: None)
    if status != 0:
        said = " / ".join(last_lines(log, 2))
        raise TrainingError(f"{name}: ended with status {status}: {said} (whole output: {log})")
    tell(f"{name}: {seconds:.0f} s")


def _file_name(text: str) -> str:
    return re.sub("[^A-Za-z0-9]+", "_", text)


def _fold(runs: Runs, trainer: str, seed: int, fold: int) -> Path:
    model = f"{trainer}__{_plans(seed)}__{CONFIGURATION}"
    return runs.work / "nnUNet_results" / DATASET / model / f"fold_{fold}"


def _course(folder: Path, name: str, behind: str = "") -> list[float]:
    """A value that the log has once an epoch, in lines that hold the words ``behind``."""
    (log,) = folder.glob("training_log*.txt")
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if behind in line]
    return [float(found[1]) for line in lines if (found := re.search(rf"\b{name} (-?\d+\.\d+|nan)", line))]


def _dice(folder: Path) -> float:
    summary = json.loads((folder / "validation" / "summary.json").read_text(encoding="utf-8"))
    return float(summary["foreground_mean"]["Dice"])
