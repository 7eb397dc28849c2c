"""Bad input under the stock commands: one clear line on stderr, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.checkpoints import write_checkpoint
from tests.end_to_end.commands import Finished, run, run_warm
from tests.end_to_end.tiny import PRETRAINER, TRAINER, Tiny

Change = Callable[[dict[str, Any]], Any]


def check_refused(finished: Finished, tiny: Tiny, *words: str) -> None:
    """One line with all of ``words``, exit status 2, and no checkpoint or model folder."""
    assert finished.status == 2, finished.stdout + finished.stderr
    (line,) = finished.error_lines
    for word in words:
        assert word in line
    assert "Traceback" not in finished.stdout + finished.stderr
    assert not list(tiny.env.results.rglob("*.pth"))
    assert not list(tiny.env.results.rglob("*.partial"))
    assert not list(tiny.env.results.rglob("plans.json"))


def edit(tiny: Tiny, change: Change) -> None:
    """Edit the configuration's block of the plans file by hand."""
    plans = tiny.read_plans()
    change(plans["configurations"][tiny.configuration])
    tiny.plans_file.write_text(json.dumps(plans))


def rewrite_case(
    tiny: Tiny, case: str, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> None:
    """Change a preprocessed case's image (C, Z, Y, X) and segmentation (1, Z, Y, X)."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    folder = tiny.preprocessed / "nnUNetPlans_3d_fullres"
    data, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
    data, seg = change(np.array(data), np.array(seg))
    for file in (f"{case}.b2nd", f"{case}_seg.b2nd"):
        (folder / file).unlink()
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(folder / case))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["architecture"]["arch_kwargs"].pop("strides"), ["no strides", "ctnet plan"]),
        (lambda c: c["architecture"].update(network_class_name="torch.hub.load"), ["'torch.hub.load' is not"]),
        (lambda c: c.update(patch_size=[16, 24, 23]), ["patch_size [16, 24, 23] is not divisible", "[4, 4, 4]"]),
        (lambda c: c["ctnet"].update(epochss=3), ["unknown ctnet option epochss", "epochs", "save_minutes"]),
        (lambda c: c["ctnet"].update(epochs="many"), ["epochs='many'"]),
        (lambda c: c["ctnet"]["transformer"].update(depth=2), ["ctnet.transformer", "differ", "ctnet plan --set"]),
    ],
    ids=["no strides", "class", "patch", "unknown key", "ill-typed", "transformer"],
)
def test_plans(copy_of_planned: Tiny, change: Change, words: list[str]) -> None:
    edit(copy_of_planned, change)
    check_refused(run_warm(copy_of_planned.env, *copy_of_planned.train(0)), copy_of_planned, *words)


def test_a_configuration_that_the_plan_lacks(copy_of_planned: Tiny) -> None:
    words = ["3d_lowres" if word == "3d_fullres" else word for word in copy_of_planned.train(0)]
    check_refused(run_warm(copy_of_planned.env, *words), copy_of_planned, "no configuration '3d_lowres'", "3d_fullres")


def other_network(tiny: Tiny, features: int) -> dict[str, torch.Tensor]:
    """Weights of the same plan with other features."""
    architecture = tiny.read_plans()["configurations"][tiny.configuration]["architecture"]
    architecture["arch_kwargs"]["features_per_stage"] = [features, 2 * features, 4 * features]
    return network_from_plan(architecture, 1, 3, True).state_dict()


def test_weights_of_another_plan(copy_of_planned: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    write_checkpoint({"network_weights": other_network(copy_of_planned, 8)}, file)
    finished = run_warm(copy_of_planned.env, *copy_of_planned.train(0, TRAINER, "-pretrained_weights", file))
    said = ("do not fit this plan's network", "same -d, -p and configuration")
    check_refused(finished, copy_of_planned, str(file), *said)
    check_table(finished)


def check_table(finished: Finished) -> None:
    """Wanted, found and action for a dozen keys at most, and no tensors."""
    lines = finished.stdout.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.split() == ["key", "wanted", "found", "action"]]
    rows = lines[start + 1 : start + 13]
    assert any("4x1x3x3x3" in row and "8x1x3x3x3" in row and row.endswith("shape differs") for row in rows)
    assert lines[start + 13].startswith("… and ")
    assert "tensor(" not in finished.stdout


def test_weights_that_are_not_there(copy_of_planned: Tiny, tmp_path: Path) -> None:
    words = copy_of_planned.train(0, TRAINER, "-pretrained_weights", tmp_path / "no.pth")
    finished = run_warm(copy_of_planned.env, *words)
    check_refused(finished, copy_of_planned, "no.pth: no such checkpoint")


@pytest.mark.parametrize("content", [b"garbage", b"PK\x03\x04 cut off", b""])
def test_weights_that_are_no_checkpoint(copy_of_planned: Tiny, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    words = copy_of_planned.train(0, TRAINER, "-pretrained_weights", tmp_path / "bad.pth")
    finished = run_warm(copy_of_planned.env, *words)
    check_refused(finished, copy_of_planned, "bad.pth: cannot be read as a checkpoint")


class Hostile:
    """Unpickling this creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_weights_that_carry_code(copy_of_planned: Tiny, tmp_path: Path) -> None:
    torch.save({"network_weights": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth")
    words = copy_of_planned.train(0, TRAINER, "-pretrained_weights", tmp_path / "hostile.pth")
    finished = run_warm(copy_of_planned.env, *words)
    check_refused(finished, copy_of_planned, "hostile.pth: cannot be read", "Python objects")
    assert not (tmp_path / "ran").exists()


def test_continuing_what_was_never_started(copy_of_planned: Tiny) -> None:
    """Stock would start a new training; by the real command, as a user types it."""
    finished = run(copy_of_planned.env, *copy_of_planned.train(0, TRAINER, "--c"))
    check_refused(finished, copy_of_planned, "--c", "fold_0", "no checkpoint to continue from", "start without --c")


def test_continuing_from_another_plan_and_from_a_broken_file(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    file = tiny.fold(0) / "checkpoint_latest.pth"
    file.parent.mkdir(parents=True)
    write_checkpoint({"network_weights": other_network(tiny, 8)}, file)
    written = file.read_bytes()
    finished = run_warm(tiny.env, *tiny.train(0, TRAINER, "--c"))
    assert (finished.status, len(finished.error_lines)) == (2, 1)
    assert "written with another plan" in finished.error_lines[0]
    check_table(finished)
    assert file.read_bytes() == written
    file.write_bytes(written[: len(written) // 2])
    finished = run_warm(tiny.env, *tiny.train(0, TRAINER, "--c"))
    assert (finished.status, len(finished.error_lines)) == (2, 1)
    assert "cannot be read as a checkpoint" in finished.error_lines[0]
    assert "Traceback" not in finished.stderr


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(copy_of_planned: Tiny) -> None:
    words = ["cuda" if word == "cpu" else word for word in copy_of_planned.train(0)]
    check_refused(run(copy_of_planned.env, *words), copy_of_planned, "-device cuda", "-device cpu", "ctnet doctor")
