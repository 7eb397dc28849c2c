"""Scores as files: a CSV that people and ``ctnet compare`` read, and a JSON with means and provenance."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.evaluation.cases import Evaluation
from ctnet_nnunet.evaluation.metrics import Scores
from ctnet_nnunet.evaluation.statistics import Summary, mean_over_all, over_cases

METRIC_NAMES = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "nsd": "NSD",
    "hd95_mm": "HD95, mm",
    "assd_mm": "ASSD, mm",
    "volume_error_percent": "size of the volume error, %",
}
METRICS = tuple(METRIC_NAMES)
COLUMNS = ("case", "structure", *METRICS, "truth_ml", "prediction_ml", "status")


def scores_csv(evaluation: Evaluation) -> str:
    """A row for each case and structure; a value that is not defined is an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case, by_structure in evaluation.table.items():
        for structure, scores in by_structure.items():
            values = [getattr(scores, name) for name in COLUMNS[2:]]
            writer.writerow([case, structure, *map(_cell, values)])
    return stream.getvalue()


def scores_json(evaluation: Evaluation, settings: Mapping[str, Any]) -> str:
    """Means over cases, detection counts, every score, failures and the settings; undefined values are null."""
    structures = {s.name: _structure(evaluation, s.name) for s in evaluation.structures}
    cases = {
        case: {name: _plain(scores) for name, scores in by_structure.items()}
        for case, by_structure in evaluation.table.items()
    }
    mean = {name: _summary(mean_over_all(evaluation.table, name)) for name in METRICS}
    content = {
        "settings": dict(settings),
        "mean": mean,
        "structures": structures,
        "cases": cases,
        "failures": evaluation.failures,
    }
    return json.dumps(content, indent=1) + "\n"


@dataclass(frozen=True)
class ScoreTable:
    """The scores of one method: ``values[metric][case, structure]``."""

    name: str
    values: Mapping[str, Mapping[tuple[str, str], float]]

    @property
    def structures(self) -> list[str]:
        return list(dict.fromkeys(structure for _, structure in self.values["dice"]))


def read_scores(path: Path, name: str) -> ScoreTable:
    """Read the CSV of :func:`scores_csv`; ``path`` is the file or the folder that ``ctnet evaluate`` wrote.

    Raises:
        DataError: If it cannot be read, lacks columns, or names a case and structure twice.
    """
    file = path / "scores.csv" if path.is_dir() else path
    values: dict[str, dict[tuple[str, str], float]] = {metric: {} for metric in METRICS}
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = {"case", "structure", *METRICS} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{file}: lacks {', '.join(sorted(missing))}; give what `ctnet evaluate` wrote")
            for row in reader:
                key = (row["case"], row["structure"])
                if key in values["dice"]:
                    raise DataError(f"{file}: {key[0]}, {key[1]} stands twice; evaluate again")
                for metric in METRICS:
                    values[metric][key] = float(row[metric]) if row[metric] else math.nan
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, TypeError) as error:
        raise DataError(f"{file}: cannot be read as scores ({error}); give what `ctnet evaluate` wrote") from error
    if not values["dice"]:
        raise DataError(f"{file}: holds no score")
    return ScoreTable(name, values)


def _structure(evaluation: Evaluation, name: str) -> dict[str, Any]:
    statuses = [scores[name].status for scores in evaluation.table.values()]
    counts = {status: statuses.count(status) for status in ("ok", "missed", "spurious", "absent")}
    return {metric: _summary(over_cases(evaluation.table, name, metric)) for metric in METRICS} | {"cases": counts}


def _summary(summary: Summary) -> dict[str, float | int | None]:
    return {"mean": _number(summary.mean), "sd": _number(summary.sd), "n": summary.n}


def _plain(scores: Scores) -> dict[str, Any]:
    values = {name: getattr(scores, name) for name in COLUMNS[2:]}
    return {name: _number(value) if isinstance(value, float) else value for name, value in values.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
