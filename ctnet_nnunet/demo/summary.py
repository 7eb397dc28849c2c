"""Score the predictions on the new scans and write the demo's report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ctnet_nnunet.demo.dataset import DATASET_NAME, NEW_LABELS, NEW_SCANS, read_roles, shipped_data
from ctnet_nnunet.demo.records import RecordBook
from ctnet_nnunet.demo.select_cases import ENDING
from ctnet_nnunet.demo.steps import (
    CONFIGURATION,
    FOLDS,
    PLANS,
    PREDICTIONS,
    PREPROCESSED,
    PRETRAINER,
    RAW,
    TRAINER,
    trainer_folder,
)
from ctnet_nnunet.evaluation import provenance
from ctnet_nnunet.evaluation.cases import Evaluation, LabelScheme, evaluate_folders, read_label_scheme
from ctnet_nnunet.evaluation.gallery import CaseFiles, case_pictures
from ctnet_nnunet.evaluation.pictures import Picture, svg_uri
from ctnet_nnunet.evaluation.plots import loss_figure, score_figure
from ctnet_nnunet.evaluation.report import Command, FoldResult, Report, write_report
from ctnet_nnunet.evaluation.training_history import History, read_history

REPORT = "report.html"

INTRODUCTION = (
    "CTNet was pretrained without labels on all training scans, fine-tuned in five folds on the few labelled ones, and "
    "the five networks together segmented scans that none of them had seen. The scores below are of "
    "those new scans."
)

NOTES = (
    "Scans: Medical Segmentation Decathlon, Task04 Hippocampus (Simpson et al., arXiv:1902.09063), CC BY-SA 4.0.",
    "A patient may have given two volumes, and the source has no list of them: new scans and training scans may share "
    "patients. Training is as short as a few minutes allow. This shows that the whole way works; it is no benchmark.",
    "For research. Not a medical device; not for diagnosis.",
)


def summarise(root: Path, book: RecordBook, environment: Sequence[str]) -> tuple[Evaluation, Path]:
    """Evaluate ``root/predictions`` and write ``root/report.html``; returns the scores and the report's path.

    Raises:
        DataError: if there is nothing to evaluate, or a scan cannot be read.
    """
    scheme = read_label_scheme(root / RAW / DATASET_NAME / "dataset.json")
    evaluation = evaluate_folders(root / NEW_LABELS, root / PREDICTIONS, scheme)
    report = _report(root, book, environment, scheme, evaluation)
    write_report(root / REPORT, report)
    return evaluation, root / REPORT


def _report(
    root: Path, book: RecordBook, environment: Sequence[str], scheme: LabelScheme, evaluation: Evaluation
) -> Report:
    def files(case: str) -> CaseFiles:
        name = f"{case}{ENDING}"
        return CaseFiles(root / NEW_SCANS / f"{case}_0000{ENDING}", root / NEW_LABELS / name, root / PREDICTIONS / name)

    cases, note = case_pictures(evaluation, scheme, files)
    return Report(
        title=f"CTNet on few labels: hippocampus demo{' (quick)' if book.settings == 'quick' else ''}",
        written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        introduction=INTRODUCTION,
        evaluation=evaluation,
        facts=_facts(root),
        cases=cases,
        pictures_note=note,
        curves=_curves(root),
        folds=_folds(root),
        environment=environment,
        commands=[Command(run.line, _time(run.started), run.seconds, run.exit_status) for run in book.runs],
        versions=provenance.versions(),
        machine=provenance.machine(),
        notes=NOTES,
    )


def _time(started: str) -> str:
    return datetime.fromisoformat(started).strftime("%d %b, %H:%M:%S")


def _facts(root: Path) -> dict[str, str]:
    """What the run was, out of the plans that it used."""
    roles = list(read_roles(shipped_data()).values())
    plans: dict[str, Any] = json.loads((root / PREPROCESSED / DATASET_NAME / f"{PLANS}.json").read_text())
    configuration = plans["configurations"][CONFIGURATION]
    options = configuration["ctnet"]
    patch = " × ".join(str(n) for n in configuration["patch_size"])
    return {
        "Task": "anterior and posterior hippocampus in T1-weighted MR, 1 mm",
        "Labelled scans": f"{roles.count('labelled')}, in {len(FOLDS)} folds",
        "Unlabelled scans": f"{roles.count('unlabelled')}, for pretraining, with the labelled ones (not their labels)",
        "New scans": f"{roles.count('held_out')}, never used in training",
        "Network": f"CTNet, preset {options['preset']}; patch {patch} voxels, batch size {configuration['batch_size']}",
        "Pretraining": _schedule({**options, **options.get("pretrain", {})}),
        "Fine-tuning": f"{_schedule(options)}, for each fold",
    }


def _schedule(options: dict[str, Any]) -> str:
    return f"{options['epochs']} epochs of {options['iterations']} iterations"


def _curves(root: Path) -> list[Picture]:
    pretraining = read_history(root / trainer_folder(PRETRAINER, "all"), "pretraining")
    folds = [read_history(root / trainer_folder(TRAINER, fold), f"fold {fold}") for fold in FOLDS]
    found: list[History] = [history for history in folds if history is not None]
    together = [*([pretraining] if pretraining else []), *found]
    if not together:
        return []
    caption = "Loss over epochs. Pretraining: rotation and masked features; folds: Dice and cross-entropy."
    pictures = [Picture(svg_uri(loss_figure(together)), caption, "Loss curves of all trainings.")]
    if any(history.score for history in found):
        score = svg_uri(score_figure(found, "Dice on patches"))
        caption = "Mean Dice on a few random validation patches in each epoch, as nnU-Net logs it; a rough guide only."
        pictures.append(Picture(score, caption, "Validation Dice of each fold over epochs."))
    return pictures


def _folds(root: Path) -> list[FoldResult]:
    """The ``summary.json`` that each fold's final validation wrote."""
    results = []
    for fold in FOLDS:
        path = root / trainer_folder(TRAINER, fold) / "validation" / "summary.json"
        if path.is_file():
            summary = json.loads(path.read_text())
            dice = float(summary["foreground_mean"]["Dice"])
            results.append(FoldResult(fold, len(summary["metric_per_case"]), dice))
    return results
