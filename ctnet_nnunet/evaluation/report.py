"""``report.html``: one file that needs no other and no network.

Every text goes through the template's autoescape: case names, label names and command lines are data, never markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ctnet_nnunet.evaluation.cases import Evaluation
from ctnet_nnunet.evaluation.metrics import NSD_TOLERANCE_MM, Structure
from ctnet_nnunet.evaluation.pictures import TRUTH_COLOUR, Picture, colour
from ctnet_nnunet.evaluation.statistics import Summary, mean_over_all, over_cases, over_structures
from ctnet_nnunet.files import write_text


@dataclass(frozen=True)
class Command:
    """One command as typed, when it started, how long it took and how it ended (None: it was interrupted)."""

    line: str
    started: str
    seconds: float
    exit_status: int | None


@dataclass(frozen=True)
class FoldResult:
    """The final validation of one fold: its cases, and the mean Dice over structures that nnU-Net wrote."""

    name: str
    cases: int
    dice: float


@dataclass(frozen=True)
class CasePictures:
    """The pictures of one case, under its name."""

    case: str
    pictures: tuple[Picture, ...]


@dataclass
class Report:
    """Everything that the report shows; the sections whose list is empty are left out."""

    title: str
    written: str
    introduction: str
    evaluation: Evaluation
    facts: dict[str, str] = field(default_factory=dict)
    cases: Sequence[CasePictures] = ()
    pictures_note: str = ""
    curves: Sequence[Picture] = ()
    folds: Sequence[FoldResult] = ()
    environment: Sequence[str] = ()
    commands: Sequence[Command] = ()
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    tolerance_mm: float = NSD_TOLERANCE_MM


def render(report: Report) -> str:
    """The report as HTML text."""
    environment = Environment(
        loader=PackageLoader("ctnet_nnunet.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=_number, duration=duration)
    return environment.get_template("report.html").render(r=report, style=style_sheet(), **_tables(report.evaluation))


def style_sheet() -> str:
    """The look of all our pages."""
    return (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")


def write_report(path: Path, report: Report) -> None:
    """Write the report; readers see the old file or the whole new one."""
    write_text(path, render(report))


def duration(seconds: float) -> str:
    """``48 s``, ``3 min 05 s``, ``2 h 04 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _number(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"


def _tables(evaluation: Evaluation) -> dict[str, Any]:
    """Rows for the template: what is counted once, here, and only laid out there."""
    table, structures = evaluation.table, evaluation.structures
    return {
        "structures": [_structure_row(evaluation, s) for s in structures],
        "case_rows": [_case_row(evaluation, case) for case in table],
        "overall": {metric: mean_over_all(table, metric) for metric in ("dice", "hd95_mm")},
        "truth_colour": TRUTH_COLOUR,
    }


def _structure_row(evaluation: Evaluation, structure: Structure) -> dict[str, Any]:
    def over(metric: str) -> Summary:
        return over_cases(evaluation.table, structure.name, metric)

    metrics = ("dice", "nsd", "hd95_mm", "assd_mm", "truth_ml", "prediction_ml")
    scores = [case[structure.name] for case in evaluation.table.values()]
    missed = sum(math.isnan(s.hd95_mm) and s.dice == 0 for s in scores)
    return {
        "name": structure.name,
        "colour": colour(evaluation.structures, structure),
        "missed": missed,
        **{metric: over(metric) for metric in metrics},
    }


def _case_row(evaluation: Evaluation, case: str) -> dict[str, Any]:
    scores = [evaluation.table[case][s.name] for s in evaluation.structures]
    return {
        "name": case,
        "scores": scores,
        "dice": over_structures(evaluation.table, case, "dice").mean,
        "hd95_mm": over_structures(evaluation.table, case, "hd95_mm").mean,
    }
