"""A folder of predictions against a folder of true label maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.evaluation.metrics import (
    IGNORE,
    NSD_TOLERANCE_MM,
    Scores,
    Structure,
    score,
    structures_from_labels,
)
from ctnet_nnunet.evaluation.volumes import read_label_map, require_same_grid


@dataclass(frozen=True)
class LabelScheme:
    """What a ``dataset.json`` says about labels: the structures, the ignore label, the file ending."""

    structures: tuple[Structure, ...]
    ignore: int | None
    file_ending: str

    @property
    def known(self) -> frozenset[int]:
        """Every label value that may occur in a map, the background included."""
        values = {0, *(label for structure in self.structures for label in structure.labels)}
        return frozenset(values if self.ignore is None else values | {self.ignore})


@dataclass
class Evaluation:
    """Scores by case and structure, and the cases that could not be scored with the reason."""

    structures: tuple[Structure, ...]
    table: dict[str, dict[str, Scores]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def read_label_scheme(dataset_json: Path) -> LabelScheme:
    """Read the labels and the file ending out of a ``dataset.json``.

    Raises:
        DataError: if the file is missing, is no JSON, or lacks a key.
    """
    try:
        content = json.loads(dataset_json.read_text())
        labels = content["labels"]
        ignore = labels.get(IGNORE)
        return LabelScheme(structures_from_labels(labels), ignore, content["file_ending"])
    except OSError as error:
        raise DataError(f"{dataset_json}: cannot be read ({error.strerror}); give a dataset.json") from error
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{dataset_json}: is no dataset.json of nnU-Net ({error!r})") from error


def score_case(
    truth_file: Path, prediction_file: Path, scheme: LabelScheme, tolerance_mm: float = NSD_TOLERANCE_MM
) -> dict[str, Scores]:
    """Scores of every structure in one case; voxels that carry the ignore label in the truth do not count.

    Raises:
        DataError: if a file cannot be read, holds unknown labels, or the grids differ.
    """
    truth_volume, truth = read_label_map(truth_file, scheme.known)
    prediction_volume, prediction = read_label_map(prediction_file, scheme.known)
    require_same_grid(truth_volume, prediction_volume)
    if scheme.ignore is not None:
        prediction = np.where(truth == scheme.ignore, 0, prediction)
    spacing = truth_volume.spacing
    return {s.name: score(s.mask(truth), s.mask(prediction), spacing, tolerance_mm) for s in scheme.structures}


def evaluate_folders(
    truth: Path,
    predictions: Path,
    scheme: LabelScheme,
    cases: Sequence[str] | None = None,
    tolerance_mm: float = NSD_TOLERANCE_MM,
) -> Evaluation:
    """Score every case of ``truth`` (or the ``cases`` named); a case that fails is recorded and the others go on.

    Raises:
        DataError: if there is no case at all.
    """
    names = sorted(cases if cases is not None else case_names(truth, scheme.file_ending))
    if not names:
        raise DataError(f"{truth}: holds no label map *{scheme.file_ending}; give the folder with the true labels")
    result = Evaluation(scheme.structures)
    for name in names:
        file_name = f"{name}{scheme.file_ending}"
        try:
            result.table[name] = score_case(truth / file_name, predictions / file_name, scheme, tolerance_mm)
        except DataError as error:
            result.failures[name] = str(error)
    return result


def case_names(folder: Path, ending: str) -> list[str]:
    """Names of the label maps in a folder; none where there is no folder."""
    return [p.name[: -len(ending)] for p in folder.iterdir() if p.name.endswith(ending)] if folder.is_dir() else []
