"""One row a case and structure: from nnU-Net's predictions of the test cases and the true labels."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.evaluation.cases import LabelScheme, evaluate_folders
from ctnet_nnunet.evaluation.metrics import Scores
from ctnet_nnunet.files import write_text
from ctnet_nnunet.low_label.experiment import Experiment
from ctnet_nnunet.low_label.trainings import Training


@dataclass(frozen=True)
class Row:
    """Scores of one structure in one test case by one training.

    ``status`` is ``ok``, ``missed`` (in truth alone: Dice 0, no distance), ``spurious`` (in the prediction alone:
    Dice 0, no distance) or ``absent`` (in neither: no value at all). Values that are not defined are nan.
    """

    arm: str
    labels: int
    draw: int
    case: str
    structure: str
    dice: float
    jaccard: float
    hd95_mm: float
    asd_mm: float
    truth_ml: float
    prediction_ml: float
    status: str


COLUMNS = tuple(field.name for field in fields(Row))


def score_training(experiment: Experiment, training: Training, truth: Path, scheme: LabelScheme) -> None:
    """Score the predictions of a finished training and keep the rows in ``scores/``.

    Raises:
        DataError: If a test case could not be scored.
    """
    if training.arm is None:
        return
    cases = experiment.settings.test
    evaluation = evaluate_folders(truth, training.validation, scheme, cases)
    if evaluation.failures:
        case, reason = next(iter(evaluation.failures.items()))
        raise DataError(f"{training.title}: {case} cannot be scored: {reason}")
    labels, draw = _key(experiment, training)
    rows = [
        _row(training.arm.name, labels, draw, case, structure, scores)
        for case in cases
        for structure, scores in evaluation.table[case].items()
    ]
    text = json.dumps([_without_nan(asdict(row)) for row in rows], indent=0)
    write_text(_file(experiment, training), text + "\n")


def scored(experiment: Experiment, training: Training) -> bool:
    """Whether the rows of this very training were kept: an earlier one's may lie there."""
    file, summary = _file(experiment, training), training.validation / "summary.json"
    return training.finished and file.is_file() and file.stat().st_mtime_ns >= summary.stat().st_mtime_ns


def read_rows(experiment: Experiment, trainings: Sequence[Training]) -> list[Row]:
    """The rows of all trainings that were scored, in the order of the trainings."""
    rows = []
    for training in trainings:
        if training.arm is not None and scored(experiment, training):
            content: list[dict[str, Any]] = json.loads(_file(experiment, training).read_text(encoding="utf-8"))
            rows += [Row(**_with_nan(row)) for row in content]
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV; a value that is not defined is an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(value) for value in asdict(row).values()])
    return stream.getvalue()


def _row(arm: str, labels: int, draw: int, case: str, structure: str, scores: Scores) -> Row:
    return Row(
        arm=arm,
        labels=labels,
        draw=draw,
        case=case,
        structure=structure,
        dice=scores.dice,
        jaccard=scores.jaccard,
        hd95_mm=scores.hd95_mm,
        asd_mm=scores.assd_mm,
        truth_ml=scores.truth_ml,
        prediction_ml=scores.prediction_ml,
        status=scores.status,
    )


def _key(experiment: Experiment, training: Training) -> tuple[int, int]:
    if training.draw is None:
        return experiment.settings.most_labels, 1
    return training.draw.labels, training.draw.number


def _file(experiment: Experiment, training: Training) -> Path:
    return experiment.folder / "scores" / f"{training.name}.json"


def _without_nan(row: dict[str, object]) -> dict[str, object]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _with_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in row.items()}


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
