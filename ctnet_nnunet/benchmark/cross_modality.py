"""Both stages of cross-modality learning on a few real scans, each left out once: losses, not accuracy.

Real commands in a folder of its own: stage 1 on a fold's training scans, then stage 2 from its weights and from a
Kaiming start, and the plan's U-Net on all sequences at once, each for equally many iterations. The scans are cropped
around their labels, because whole ones would be predicted for longer than they are trained on.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ctnet_nnunet.checkpoints import read_checkpoint
from ctnet_nnunet.errors import DataError, SetupError, TrainingError
from ctnet_nnunet.process import Workplace, last_lines, run_command
from ctnet_nnunet.shim_path import VARIABLE, with_shim

NUMBER, PLANS, CONFIGURATION = 950, "CTNetPlans", "3d_fullres"
DATASET = f"Dataset{NUMBER}_CrossModality"
STAGE_ONE, STAGE_TWO, PLAIN = "nnUNetTrainerCMFT", "nnUNetTrainerCMFF", "nnUNetTrainerStockSGD"
ARMS = {"CMFF, from CMFT": STAGE_TWO, "CMFF, Kaiming": STAGE_TWO, "U-Net, all sequences at once": PLAIN}
TRANSITION_LOSSES = ("loss", "cycle_a", "cycle_b", "adversarial_a", "adversarial_b", "discriminators")


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
    device: str


@dataclass
class Figures:
    """Measured values of one data set.

    Attributes:
        transition: Fold → loss → its mean over the first and over the last epoch.
        arms: Arm → fold → training loss of the first and of the last epoch, and Dice of the left-out scan.
    """

    transition: dict[int, dict[str, tuple[float, float]]]
    arms: dict[str, dict[int, tuple[float, float, float]]]


def compare_starts(runs: Runs, tell: Callable[[str], None]) -> Figures:
    """Prepare, train every arm on every fold, and read the figures off the checkpoints and logs.

    Raises:
        DataError: Fewer than two labelled scans.
        SetupError: The work folder is not empty.
        TrainingError: A command failed; its log is named.
    """
    place, cases = _prepare(runs), _cases(runs)
    if len(cases) < 2:
        raise DataError(f"{runs.data}: {len(cases)} labelled scan; leaving one out takes two")
    _make_dataset(runs, cases)
    dataset = ("-d", str(NUMBER), "-c", CONFIGURATION)
    _do(place, tell, "preprocess", "nnUNetv2_plan_and_preprocess", *dataset, "-npfp", "1", "-np", "1")
    _do(place, tell, "plan", "ctnet", "plan", *dataset, "--preset", "identity", *_settings(runs))
    splits = [{"train": [other for other in cases if other != case], "val": [case]} for case in cases]
    (runs.work / "nnUNet_preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))
    figures = Figures({}, {arm: {} for arm in ARMS})
    for fold in range(len(cases)):
        _train(runs, place, tell, fold, STAGE_ONE, "stage 1")
        figures.transition[fold] = _transition(_fold(runs, STAGE_ONE, fold))
        for arm, trainer in ARMS.items():
            weights = ("-pretrained_weights", str(_fold(runs, STAGE_ONE, fold) / "checkpoint_final.pth"))
            _train(runs, place, tell, fold, trainer, arm, *(weights if arm.endswith("CMFT") else ()))
            figures.arms[arm][fold] = _outcome(_fold(runs, trainer, fold))
            # The next arm may be of the same trainer.
            _fold(runs, trainer, fold).rename(runs.work / f"{re.sub('[^A-Za-z]+', '_', arm)}_fold_{fold}")
    return figures


def _prepare(runs: Runs) -> Workplace:
    if runs.work.exists() and any(runs.work.iterdir()):
        raise SetupError(f"{runs.work}: not empty; give a new folder")
    folders = {name: str(runs.work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir(parents=True)
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, **folders, "PATH": beside, VARIABLE: with_shim(None), "nnUNet_compile": "f"}
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


def _settings(runs: Runs) -> list[str]:
    values: dict[str, Any] = {
        "patch_size": list(runs.patch), "features_base": runs.features, "batch_size": 1,
        "epochs": runs.epochs, "iterations": runs.iterations, "val_iterations": 2,
        "cross_modality.features": runs.features, "cross_modality.pictures_every": 1,
        "cmft.learning_rate": 1e-4, "cmff.learning_rate": 1e-4,
    }  # fmt: skip
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def _train(
    runs: Runs, place: Workplace, tell: Callable[[str], None], fold: int, trainer: str, arm: str, *more: str
) -> None:
    words = ("nnUNetv2_train", str(NUMBER), CONFIGURATION, str(fold), "-tr", trainer, "-p", PLANS)
    _do(place, tell, f"{arm}, fold {fold}", *words, "-device", runs.device, *more)


def _do(place: Workplace, tell: Callable[[str], None], name: str, *command: str) -> None:
    log = place.folder / "logs" / f"{re.sub('[^A-Za-z0-9]+', '_', name)}.txt"
    seconds, status = run_command(command, place, log, lambda: None)
    if status != 0:
        said = " / ".join(last_lines(log, 2))
        raise TrainingError(f"{name}: ended with status {status}: {said} (whole output: {log})")
    tell(f"{name}: {seconds:.0f} s")


def _fold(runs: Runs, trainer: str, fold: int) -> Path:
    model = f"{trainer}__{PLANS}__{CONFIGURATION}"
    return runs.work / "nnUNet_results" / DATASET / model / f"fold_{fold}"


def _transition(folder: Path) -> dict[str, tuple[float, float]]:
    """The losses that the log has of each epoch, the first's and the last's."""
    (log,) = folder.glob("training_log*.txt")
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if re.search(r"\btrain loss \d", line)]
    values = [dict(re.findall(r"([a-z_]+) (-?\d+\.\d+)", line)) for line in (lines[0], lines[-1])]
    return {name: (float(values[0][name]), float(values[1][name])) for name in TRANSITION_LOSSES}


def _outcome(folder: Path) -> tuple[float, float, float]:
    losses = read_checkpoint(folder / "checkpoint_final.pth")["logging"]["train_losses"]
    summary = json.loads((folder / "validation" / "summary.json").read_text(encoding="utf-8"))
    return float(losses[0]), float(losses[-1]), float(summary["foreground_mean"]["Dice"])


def tables(figures: Figures) -> str:
    """Both tables in Markdown; a value of each fold, in order."""
    first = ["| stage 1: mean loss of an epoch | first epoch | last epoch |", "|---|---|---|"]
    for name in TRANSITION_LOSSES:
        cells = [", ".join(f"{fold[name][place]:.3f}" for fold in figures.transition.values()) for place in (0, 1)]
        first.append(f"| {name} | {cells[0]} | {cells[1]} |")
    second = [
        "| training | loss of the first epoch | of the last | Dice of the left-out scan | its mean |",
        "|---|---|---|---|---|",
    ]
    for arm, folds in figures.arms.items():
        cells = [", ".join(f"{fold[place]:.3f}" for fold in folds.values()) for place in range(3)]
        mean = float(np.mean([fold[2] for fold in folds.values()]))
        second.append(f"| {arm} | {cells[0]} | {cells[1]} | {cells[2]} | {mean:.3f} |")
    return "\n".join([*first, "", *second])
