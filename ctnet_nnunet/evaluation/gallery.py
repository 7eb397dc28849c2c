"""Which cases and structures are shown, and their pictures with captions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.evaluation.cases import Evaluation, LabelScheme
from ctnet_nnunet.evaluation.metrics import Scores, Structure
from ctnet_nnunet.evaluation.pictures import Picture, contour_figure, svg_uri
from ctnet_nnunet.evaluation.report import CasePictures
from ctnet_nnunet.evaluation.statistics import over_structures
from ctnet_nnunet.evaluation.views import PLANES, read_view, shown_planes

MAX_CASES, MAX_STRUCTURES = 12, 3


@dataclass(frozen=True)
class CaseFiles:
    """Where one case lies."""

    scan: Path
    truth: Path
    prediction: Path


def choose_cases(evaluation: Evaluation, limit: int = MAX_CASES) -> list[str]:
    """All cases, or for many: a third each of the lowest, the middle and the highest mean Dice, in order of name."""
    names = list(evaluation.table)
    if len(names) <= limit:
        return names
    means = {name: over_structures(evaluation.table, name, "dice").mean for name in names}
    ranked = sorted(names, key=lambda name: (math.isnan(means[name]), means[name]))
    third = limit // 3
    middle = (len(ranked) - third) // 2
    chosen = {*ranked[:third], *ranked[middle : middle + third], *ranked[len(ranked) - (limit - 2 * third) :]}
    return [name for name in names if name in chosen]


def choose_structures(evaluation: Evaluation, case: str, limit: int = MAX_STRUCTURES) -> list[Structure]:
    """All structures, or for many: those with the lowest Dice in this case."""
    if len(evaluation.structures) <= limit:
        return list(evaluation.structures)
    scores = evaluation.table[case]
    defined = [s for s in evaluation.structures if not math.isnan(scores[s.name].dice)]
    lowest = sorted(defined, key=lambda s: scores[s.name].dice)[:limit]
    return [s for s in evaluation.structures if s in lowest]


def case_pictures(
    evaluation: Evaluation, scheme: LabelScheme, files: Callable[[str], CaseFiles]
) -> tuple[list[CasePictures], str]:
    """The pictures of the chosen cases, and a sentence on the choice (empty where everything is shown)."""
    shown = []
    for case in choose_cases(evaluation):
        where = files(case)
        view = read_view(where.scan, where.truth, where.prediction, scheme)
        planes = ", ".join(PLANES[p] for p in shown_planes(view))
        pictures = []
        for structure in choose_structures(evaluation, case):
            caption = _caption(structure, evaluation.table[case][structure.name])
            uri = svg_uri(contour_figure(view, evaluation.structures, structure))
            pictures.append(Picture(uri, caption, f"{case}, {planes}: manual and predicted outlines. {caption}"))
        shown.append(CasePictures(case, tuple(pictures)))
    return shown, _choice_note(evaluation)


def _caption(structure: Structure, scores: Scores) -> str:
    if math.isnan(scores.dice):
        return f"{structure.name}: absent in both"
    if math.isnan(scores.hd95_mm):
        missing = "not predicted" if scores.prediction_ml == 0 else "not in the manual labels"
        return f"{structure.name}: {missing}"
    return (
        f"{structure.name}: Dice {scores.dice:.3f}, HD95 {scores.hd95_mm:.2f} mm, "
        f"volume {scores.prediction_ml:.2f} ml (true {scores.truth_ml:.2f} ml)"
    )


def _choice_note(evaluation: Evaluation) -> str:
    notes = []
    if len(evaluation.table) > MAX_CASES:
        notes.append(f"Of {len(evaluation.table)} scans, those with the lowest, middle and highest Dice are shown.")
    if len(evaluation.structures) > MAX_STRUCTURES:
        notes.append(f"In each scan, the {MAX_STRUCTURES} structures with the lowest Dice are shown.")
    return " ".join(notes)
