"""What mirrors, step and folds cost and give: ``ctnet predict`` with each combination, against ``--speed best``."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctnet_nnunet.benchmark.predict import Job, mean_dice
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.process import Workplace, last_lines, run_command

STEPS = (0.5, 0.75)


@dataclass
class Setting:
    """One way to predict, and what came of it.

    Attributes:
        speed: ``best`` for the row that the others are compared with, else ``balanced``.
        precision: What the engine computed in.
        passes: Forward passes, mean over the scans.
        seconds: Of a scan, mean over the scans: one value a repeat, without the program's start.
        dice_to_best, dice: Means over scans and structures; ``dice`` is against the manual labels.
    """

    speed: str
    mirrors: bool
    step: float
    folds: tuple[str, ...]
    precision: str = ""
    passes: float = math.nan
    seconds: list[float] = field(default_factory=list)
    dice_to_best: float = math.nan
    dice: float = math.nan


def settings_of(folds: Sequence[str]) -> list[Setting]:
    """``best``, then every combination of mirrors, steps, and all folds or the first."""
    every = tuple(folds)
    groups = [every] if len(every) == 1 else [every, every[:1]]
    combined = itertools.product(groups, (True, False), STEPS)
    return [
        Setting("best", True, STEPS[0], every),
        *(Setting("balanced", mirrors, step, group) for group, mirrors, step in combined),
    ]


def measure_trade_off(
    job: Job, rows: Sequence[Setting], engine: str, repeats: int, say: Callable[[str], None]
) -> None:
    """Fill in the rows: all in turn, ``repeats`` times, so that ratios compare runs of the same minutes.

    Args:
        rows: From :func:`settings_of`; the first is what the others are compared with.

    Raises:
        SetupError: A command failed; with its last line.
        DataError: A scan without its label map.
    """
    with tempfile.TemporaryDirectory(prefix="ctnet-trade-off-") as temporary:
        root = Path(temporary)
        place = Workplace(root, dict(os.environ))
        outputs = [root / f"{number}" for number in range(len(rows))]
        for repeat in range(repeats):
            for row, out in zip(rows, outputs, strict=True):
                log = root / f"{out.name}.log"
                _, status = run_command(_command(job, row, engine, out), place, log, lambda: None)
                if status != 0:
                    raise SetupError(f"{_words(row)}: the command failed: {' '.join(last_lines(log, 1))}")
                _read_record(row, out)
                say(f"repeat {repeat + 1}/{repeats}: {_words(row)}: {row.seconds[-1]:.1f} s a scan")
        for row, out in zip(rows, outputs, strict=True):
            row.dice_to_best = mean_dice(out, outputs[0], outputs[0], job)
            if job.references is not None:
                row.dice = mean_dice(out, job.references, outputs[0], job)


def trade_off_table(rows: Sequence[Setting]) -> list[str]:
    """The lines of a table; ratios are seconds of ``best`` over a row's, repeat by repeat: above 1 is faster."""
    lines = [
        "| precision | mirrors | step | folds | passes a scan | seconds a scan | × as fast | Dice to best | Dice |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = statistics.median(best / mine for best, mine in zip(rows[0].seconds, row.seconds, strict=True))
        cells = [row.precision, "yes" if row.mirrors else "no", f"{row.step:g}", str(len(row.folds))]
        cells += [f"{row.passes:.0f}", f"{statistics.median(row.seconds):.1f}", f"{ratio:.2f}"]
        cells += [f"{row.dice_to_best:.4f}"]
        lines.append(f"| {' | '.join([*cells, '–' if math.isnan(row.dice) else f'{row.dice:.4f}'])} |")
    return lines


def _command(job: Job, row: Setting, engine: str, out: Path) -> tuple[str, ...]:
    shared = ("ctnet", "predict", "-i", str(job.scans.absolute()), "-o", str(out), "-m", str(job.model.absolute()))
    folds = [word for fold in row.folds for word in ("-f", fold)]
    how = ("--speed", row.speed, "--step", f"{row.step:g}", "--mirrors" if row.mirrors else "--no-mirrors")
    return (*shared, *folds, *how, "--engine", engine, "--force")


def _read_record(row: Setting, out: Path) -> None:
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    cases = record["cases"].values()
    row.precision = record["settings"]["precision"]
    row.passes = statistics.mean(case["passes"] for case in cases)
    row.seconds.append(statistics.mean(case["seconds"] for case in cases))


def _words(row: Setting) -> str:
    mirrors = "mirrors" if row.mirrors else "no mirrors"
    return f"{row.speed}, {mirrors}, step {row.step:g}, {len(row.folds)} folds"
