"""What is compared, kept in ``experiment.json`` of the output folder so that a later run goes on with the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.files import write_text
from ctnet_nnunet.low_label.cases import Draw, patient_of
from ctnet_nnunet.unlabeled.dataset import unlabeled_identifiers
from ctnet_nnunet.unlabeled.records import read_record

FILE_NAME = "experiment.json"
POOL_FOLD = 0
"""Of ``splits_final.json``: trains on the whole pool; pretraining reads its images, the ceiling its labels too."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a figure, the same for all arms and draws.

    Attributes:
        dataset: The dataset's folder name.
        configuration: Of the plans.
        plans: Name of the base plans.
        plans_hash: Of their content.
        preset: Of the CTNet arms.
        options: Changes to the ``ctnet`` block of every arm.
        iterations: Of a supervised training.
        pretrain_iterations: Of a pretraining; None as long as no arm has one.
        epochs: Into which either is cut, for the learning rate's steps and the curves.
        seed: Of draws and trainings.
        pool: Cases that draws and pretraining take from.
        test: Cases that nothing learns from.
        patient_pattern: What finds the patient in a case's name; draws are then of patients.
    """

    dataset: str
    configuration: str
    plans: str
    plans_hash: str
    preset: str
    options: dict[str, Any]
    iterations: int
    pretrain_iterations: int | None
    epochs: int
    seed: int
    pool: tuple[str, ...]
    test: tuple[str, ...]
    patient_pattern: str | None = None

    @property
    def most_labels(self) -> int:
        """All labels of the pool, counted as draws count them: cases, or patients where a pattern finds them."""
        return len({patient_of(case, self.patient_pattern) for case in self.pool})

    def per_epoch(self, iterations: int) -> int:
        """Iterations of one epoch; the total is rounded up to whole epochs."""
        return math.ceil(iterations / self.epochs)


@dataclass(frozen=True)
class UnlabelledScans:
    """The preprocessed scans of imagesUn: how many, and a hash of what they were made from."""

    count: int
    content: str

    @classmethod
    def of(cls, folder: Path) -> UnlabelledScans:
        """Those of a folder, which need not exist."""
        scans = unlabeled_identifiers(folder)
        records = {scan: read_record(folder, scan) or {} for scan in scans}
        sources = {scan: [entry["sha1"] for entry in record.get("inputs", ())] for scan, record in records.items()}
        return cls(len(scans), hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:16])

    def __str__(self) -> str:
        return f"{self.count} scan{'s' if self.count != 1 else ''} of imagesUn ({self.content})"


@dataclass
class Experiment:
    """Settings, and the draws in the order in which they became folds 1, 2, ….

    Attributes:
        folder: The output folder.
        settings: Of all trainings in it.
        draws: Labelled draws; a later run may add some.
        seconds: Training → how long it ran, for the estimate of what is left.
        checkpoints: Name of a user's checkpoint → SHA-256 of the file that its figures are of.
        unlabelled: What of imagesUn the pretrainings read beside the pool; None before the first one.
    """

    folder: Path
    settings: Settings
    draws: list[Draw] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    unlabelled: UnlabelledScans | None = None

    def read_unlabelled(self, scans: UnlabelledScans) -> None:
        """Keep what this run's pretrainings read.

        Raises:
            SetupError: Earlier ones read something else.
        """
        if self.unlabelled not in (None, scans):
            raise SetupError(
                f"{self.folder} holds a comparison whose pretrainings read {self.unlabelled}, now {scans}: figures of "
                "both in one table would not compare; give another --out"
            )
        self.unlabelled = scans

    def add_draws(self, draws: Sequence[Draw]) -> None:
        """Give new draws their folds."""
        self.draws += [draw for draw in draws if draw not in self.draws]

    def fold(self, draw: Draw) -> int:
        """The draw's number in ``splits_final.json``."""
        return 1 + self.draws.index(draw)

    def splits(self) -> list[dict[str, list[str]]]:
        """Content of ``splits_final.json``: the test cases are every fold's validation cases."""
        sets = [self.settings.pool, *(draw.cases for draw in self.draws)]
        return [{"train": list(cases), "val": list(self.settings.test)} for cases in sets]

    def semi_split(self) -> dict[str, dict[str, dict[str, list[str]]]]:
        """Content of ``semi_split.json``: each draw's cases, and the pool's others, whose labels are hidden."""
        folds = {
            str(self.fold(draw)): {
                "labeled": list(draw.cases),
                "unlabeled": [case for case in self.settings.pool if case not in draw.cases],
            }
            for draw in self.draws
        }
        return {"folds": folds}

    def save(self) -> None:
        """Write ``experiment.json``; a reader sees the old one or the whole new one."""
        content = {
            "settings": asdict(self.settings),
            "draws": [asdict(draw) for draw in self.draws],
            "seconds": self.seconds,
            "checkpoints": self.checkpoints,
            "unlabelled": None if self.unlabelled is None else asdict(self.unlabelled),
        }
        write_text(self.folder / FILE_NAME, json.dumps(content, indent=1) + "\n")


def open_experiment(folder: Path, settings: Settings, checkpoints: Mapping[str, str]) -> Experiment:
    """The experiment of a folder, a new one where there is none.

    Args:
        folder: The output folder.
        settings: Of this run.
        checkpoints: Name → SHA-256 of the user's checkpoints of this run; those of earlier runs stay known.

    Raises:
        SetupError: If the folder holds one of other settings (the first difference is named), another checkpoint under
            the same name, or something else.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        if folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir()):
            raise SetupError(f"{folder} holds other files and no {FILE_NAME}; give an empty folder with --out")
        return Experiment(folder, settings, checkpoints=dict(checkpoints))
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        old = content["settings"]
        draws = [Draw(draw["labels"], draw["number"], tuple(draw["cases"])) for draw in content["draws"]]
        seconds = {str(name): float(value) for name, value in content["seconds"].items()}
        scans = content.get("unlabelled")
        unlabelled = None if scans is None else UnlabelledScans(int(scans["count"]), str(scans["content"]))
        known = {str(name): str(value) for name, value in content.get("checkpoints", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"{file} cannot be read ({error!r}); give another --out") from error
    if settings.pretrain_iterations is None:
        settings = replace(settings, pretrain_iterations=old.get("pretrain_iterations"))
    elif old.get("pretrain_iterations") is None:  # no arm had a pretraining so far
        old = {**old, "pretrain_iterations": settings.pretrain_iterations}
    new = json.loads(json.dumps(asdict(settings)))
    for key, value in new.items():
        if old.get(key) != value:
            raise SetupError(
                f"{folder} holds a comparison with another {key} ({_short(old.get(key))}, now {_short(value)}): "
                "figures of both in one table would not compare; give another --out"
            )
    for name, content_hash in checkpoints.items():
        if known.setdefault(name, content_hash) != content_hash:
            raise SetupError(
                f"--checkpoint {name}: {folder} holds figures of another file under this name; give it another name"
            )
    return Experiment(folder, settings, draws, seconds, known, unlabelled)


def plans_hash(plans: Mapping[str, Any], configuration: str) -> str:
    """Of the parts of a plans file that the arms are made of."""
    parts = {key: value for key, value in plans.items() if key != "configurations"}
    text = json.dumps([parts, plans["configurations"][configuration]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
