"""Time and labels of ``ctnet predict`` beside stock ``nnUNetv2_predict`` of the same model, each in its own process."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.evaluation.metrics import Structure, dice, structures_from_labels
from ctnet_nnunet.evaluation.statistics import summarise
from ctnet_nnunet.process import Workplace, last_lines, run_command
from ctnet_nnunet.shim_path import VARIABLE, with_shim

STOCK = ("nnU-Net", "best")


@dataclass(frozen=True)
class Job:
    """What to predict: scans in nnU-Net's naming, a model's folder, its folds, and labels to score against."""

    scans: Path
    model: Path
    folds: tuple[str, ...]
    references: Path | None
    ending: str
    structures: tuple[Structure, ...]


@dataclass
class Row:
    """One engine and speed: seconds of each repeat, and its labels beside stock's and the reference."""

    engine: str
    speed: str
    seconds: list[float] = field(default_factory=list)
    differing: float = math.nan
    dice_to_stock: float = math.nan
    dice_to_reference: float = math.nan


def read_job(scans: Path, model: Path, folds: Sequence[str], references: Path | None) -> Job:
    """Check the inputs.

    Raises:
        DataError: A folder or file is missing.
    """
    file = model / "dataset.json"
    if not file.is_file():
        raise DataError(f"{file}: missing; give a model's folder with -m, which stock reads too")
    dataset = json.loads(file.read_text(encoding="utf-8"))
    ending = str(dataset.get("file_ending", ".nii.gz"))
    if not any(scans.glob(f"*_0000{ending}")):
        raise DataError(f"{scans}: holds no CASE_0000{ending}; nnUNetv2_predict reads scans of such names only")
    found = sorted(path.name.removeprefix("fold_") for path in model.glob("fold_[0-9]*"))
    if not (folds or found):
        raise DataError(f"{model}: no fold_X in it; give a trained model's folder with -m")
    return Job(scans, model, tuple(folds or found), references, ending, structures_from_labels(dataset["labels"]))


def measure_prediction(
    job: Job, engines: Sequence[str], speeds: Sequence[str], repeats: int, say: Callable[[str], None]
) -> list[Row]:
    """All rows in turn, ``repeats`` times, so that a ratio compares runs of the same minutes; stock comes first.

    Raises:
        SetupError: A command failed; with its last line.
    """
    rows = [Row(*STOCK), *(Row(engine, speed) for engine in engines for speed in speeds)]
    with tempfile.TemporaryDirectory(prefix="ctnet-benchmark-") as temporary:
        root = Path(temporary)
        environment = {**os.environ, VARIABLE: with_shim(os.environ.get(VARIABLE))}
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            environment.setdefault(name, temporary)  # asked for by stock's import, not used
        place = Workplace(root, environment)
        for repeat in range(repeats):
            for row in rows:
                out = root / f"{row.engine}_{row.speed}"
                log = root / f"{out.name}.log"
                seconds, status = run_command(_command(job, row, out), place, log, lambda: None)
                if status != 0:
                    raise SetupError(f"{row.engine}, {row.speed}: the command failed: {' '.join(last_lines(log, 1))}")
                row.seconds.append(seconds)
                say(f"repeat {repeat + 1}/{repeats}: {row.engine}, {row.speed}: {seconds:.1f} s")
        for row in rows:
            _compare(row, job, root)
    return rows


def mean_dice(found: Path, expected: Path, cases: Path, job: Job) -> float:
    """Mean Dice of two folders over the structures of every label map in ``cases``.

    Raises:
        DataError: A label map is missing.
    """
    values = []
    for file in sorted(cases.glob(f"*{job.ending}")):
        mine, theirs = _labels(found / file.name), _labels(expected / file.name)
        values += [dice(structure.mask(theirs), structure.mask(mine)) for structure in job.structures]
    return summarise(values).mean


def markdown(rows: Sequence[Row]) -> list[str]:
    """The lines of a table; ratios are stock's seconds over a row's, repeat by repeat: above 1 is faster."""
    lines = [
        "| engine | speed | seconds (least to greatest) | × as fast | differing voxels | Dice to nnU-Net | Dice |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = [theirs / mine for theirs, mine in zip(rows[0].seconds, row.seconds, strict=True)]
        cells = [row.engine, row.speed, _spread(row.seconds, 1), _spread(ratios, 2)]
        cells += [_number(row.differing, ".1e"), _number(row.dice_to_stock, ".4f")]
        lines.append(f"| {' | '.join([*cells, _number(row.dice_to_reference, '.4f')])} |")
    return lines


def _command(job: Job, row: Row, out: Path) -> tuple[str, ...]:
    shared = ("-i", str(job.scans.absolute()), "-o", str(out), "-m", str(job.model.absolute()), "-f", *job.folds)
    if (row.engine, row.speed) == STOCK:
        return ("nnUNetv2_predict_from_modelfolder", *shared, "-device", "cpu")
    return ("ctnet", "predict", *shared, "--engine", row.engine, "--speed", row.speed, "--force")


def _compare(row: Row, job: Job, root: Path) -> None:
    mine, stock = root / f"{row.engine}_{row.speed}", root / "_".join(STOCK)
    files = sorted(stock.glob(f"*{job.ending}"))
    row.differing = summarise(float(np.mean(_labels(mine / file.name) != _labels(file))) for file in files).mean
    row.dice_to_stock = mean_dice(mine, stock, stock, job)
    if job.references is not None:
        row.dice_to_reference = mean_dice(mine, job.references, stock, job)


def _labels(file: Path) -> np.ndarray:
    if not file.is_file():
        raise DataError(f"{file}: missing; every predicted case needs its label map")
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def _spread(values: Sequence[float], decimals: int) -> str:
    middle = f"{statistics.median(values):.{decimals}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{decimals}f} to {max(values):.{decimals}f})"


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


# A process begins with the peak of the one that started it (Linux): this one is small, and asks about its child.
_LAUNCHER = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""


def peak_of_child(command: Sequence[str], folder: Path) -> int:
    """Peak resident bytes of a command run to its end, or of the largest of the processes that it started.

    Raises:
        SetupError: It failed, or the platform does not say.
    """
    if os.name != "posix":
        raise SetupError("the memory of a process cannot be measured on this platform; try Linux or macOS")
    log, answer = folder / "command.log", folder / "peak.txt"
    launcher = [sys.executable, "-I", "-c", _LAUNCHER, str(answer)]
    with log.open("wb") as output:
        status = subprocess.call([*launcher, *command], cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    if status != 0:
        raise SetupError(f"{Path(command[0]).name} failed: {' '.join(last_lines(log, 1))}")
    return int(answer.read_text()) * (1 if sys.platform == "darwin" else 1024)
