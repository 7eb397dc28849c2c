"""Preprocessed data, splits and labels that cannot be learned from, under the stock commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from tests.end_to_end.commands import run_warm
from tests.end_to_end.refusals import check_refused
from tests.end_to_end.tiny import PRETRAINER, TRAINER, Tiny


def rewrite_case(
    tiny: Tiny, case: str, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> None:
    """Change a preprocessed case's image (C, Z, Y, X) and segmentation (1, Z, Y, X)."""
    folder = tiny.preprocessed / "nnUNetPlans_3d_fullres"
    data, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
    data, seg = change(np.array(data), np.array(seg))
    for file in (f"{case}.b2nd", f"{case}_seg.b2nd"):
        (folder / file).unlink()
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(folder / case))


def test_a_dataset_that_was_not_preprocessed(copy_of_planned: Tiny) -> None:
    (copy_of_planned.preprocessed / "nnUNetPlans_3d_fullres").rename(copy_of_planned.preprocessed / "elsewhere")
    for trainer in (TRAINER, PRETRAINER):
        finished = run_warm(copy_of_planned.env, *copy_of_planned.train(0, trainer))
        remedy = "nnUNetv2_preprocess -d 640 -plans_name CTNetPlans"
        check_refused(finished, copy_of_planned, "no preprocessed cases", remedy)


def write_split(tiny: Tiny, train: list[str], validation: list[str]) -> None:
    (tiny.preprocessed / "splits_final.json").write_text(json.dumps([{"train": train, "val": validation}]))


def test_a_split_with_an_unknown_case(copy_of_planned: Tiny) -> None:
    write_split(copy_of_planned, ["tr_000", "patient_9"], ["tr_001"])
    for trainer in (TRAINER, PRETRAINER):
        finished = run_warm(copy_of_planned.env, *copy_of_planned.train(0, trainer))
        check_refused(finished, copy_of_planned, "splits_final.json, fold 0", "patient_9")


def test_nothing_to_train_on(copy_of_planned: Tiny) -> None:
    """Pretraining still has the unlabelled scans; without these it has nothing either."""
    write_split(copy_of_planned, [], ["tr_000"])
    finished = run_warm(copy_of_planned.env, *copy_of_planned.train(0))
    check_refused(finished, copy_of_planned, "fold 0: no training case", "splits_final.json")
    unlabelled = copy_of_planned.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    unlabelled.rename(copy_of_planned.preprocessed / "elsewhere")
    (copy_of_planned.raw / "imagesUn").rename(copy_of_planned.raw / "elsewhere")
    finished = run_warm(copy_of_planned.env, *copy_of_planned.train(0, PRETRAINER))
    check_refused(finished, copy_of_planned, "nothing to pretrain on", "imagesUn", "ctnet preprocess-unlabeled")
    unlabelled.with_name("elsewhere").rename(unlabelled)
    run_warm(copy_of_planned.env, *copy_of_planned.train(0, PRETRAINER)).succeeded()


def test_scans_whose_preprocessing_was_forgotten(copy_of_planned: Tiny) -> None:
    folder = copy_of_planned.preprocessed
    (folder / "nnUNetPlans_3d_fullres_unlabeled").rename(folder / "elsewhere")
    finished = run_warm(copy_of_planned.env, *copy_of_planned.train("all", PRETRAINER))
    check_refused(finished, copy_of_planned, "imagesUn", "not preprocessed", "ctnet preprocess-unlabeled -d 640")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data, seg: (np.full_like(data, np.nan), seg), ["tr_000", "channel 0", "NaN"]),
        (lambda data, seg: (np.zeros_like(data), seg), ["tr_000", "channel 0", "same value"]),
        (lambda data, seg: (np.concatenate([data, data]), seg), ["tr_000", "2 channels", "wants 1"]),
    ],
    ids=["NaN", "constant", "two channels"],
)
@pytest.mark.parametrize("trainer", [TRAINER, PRETRAINER])
def test_images(copy_of_planned: Tiny, change: Any, words: list[str], trainer: str) -> None:
    rewrite_case(copy_of_planned, "tr_000", change)
    check_refused(run_warm(copy_of_planned.env, *copy_of_planned.train("all", trainer)), copy_of_planned, *words)


def test_a_label_that_dataset_json_lacks(copy_of_planned: Tiny) -> None:
    files = (copy_of_planned.preprocessed / "nnUNetPlans_3d_fullres").glob("tr_*")
    for case in sorted({file.name[:6] for file in files}):
        rewrite_case(copy_of_planned, case, lambda data, seg: (data, np.where(seg == 2, 7, seg)))
    finished = run_warm(copy_of_planned.env, *copy_of_planned.train("all"))
    assert (finished.status, len(finished.error_lines)) == (2, 1), finished.stderr
    for words in ("case tr_00", "label 7", "labels up to 2", "--verify_dataset_integrity"):
        assert words in finished.error_lines[0]
    assert "Traceback" not in finished.stderr


def test_labels_with_a_gap(copy_of_planned: Tiny) -> None:
    file = copy_of_planned.preprocessed / "dataset.json"
    content = json.loads(file.read_text())
    content["labels"]["right blob"] = 3
    file.write_text(json.dumps(content))
    finished = run_warm(copy_of_planned.env, *copy_of_planned.train(0))
    check_refused(finished, copy_of_planned, "dataset.json: the labels [0, 1, 3]", "without gaps")
