"""Reciprocal learning, the mean teacher and the supervised twin by stock commands, on every kind of plan."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from ctnet_nnunet.checkpoints import HEADS, read_checkpoint
from ctnet_nnunet.unlabeled.preprocess import preprocess_unlabeled
from ctnet_nnunet.unlabeled.records import describe_input
from tests.conftest import NnunetEnv
from tests.end_to_end.commands import run_function, run_warm
from tests.end_to_end.distributed.launch import run_ranks
from tests.end_to_end.refusals import check_refused
from tests.end_to_end.tiny import Tiny, prepare
from tests.synthetic import make_dataset, plan_and_preprocess

RECIPROCAL, MEAN_TEACHER, TWIN = "nnUNetTrainerReciprocal", "nnUNetTrainerMeanTeacher", "nnUNetTrainerSupervisedTwin"
TRAINERS = [RECIPROCAL, MEAN_TEACHER, TWIN]
FOLDER = "nnUNetPlans_3d_fullres"


def set_options(tiny: Tiny, **values: Any) -> None:
    """Change the semi_supervised table of the plans file by hand."""
    block = tiny.read_plans()["configurations"][tiny.configuration].get("ctnet", {})
    table = {**block.get("semi_supervised", {}), **values}
    tiny.change_configuration(ctnet={**block, "semi_supervised": table})


def checkpoint_of(tiny: Tiny, trainer: str, fold: int | str = 0) -> dict[str, Any]:
    return read_checkpoint(tiny.fold(fold, trainer) / "checkpoint_final.pth")


@pytest.fixture(scope="module")
def unet(nnunet_env: NnunetEnv) -> Tiny:
    """A stock U-Net plan of few features with two unlabelled scans; two epochs of two steps."""
    return unet_plan(nnunet_env, 700, "Semi")


def unet_plan(env: NnunetEnv, number: int, name: str, configuration: str = "3d_fullres", **more: Any) -> Tiny:
    tiny = Tiny(env, number, name, configuration, plans=more.pop("plans", "nnUNetPlans"))
    planner = more.pop("planner", "ExperimentPlanner")
    make_dataset(env.raw, number, name, 5, 2, n_test=1, seed=number, **more)
    plan_and_preprocess(number, [configuration], planner=planner)
    tiny.change_configuration(ctnet={"epochs": 2, "iterations": 2, "val_iterations": 1})
    preprocess_unlabeled(number, configuration, tiny.plans, processes=0)
    return tiny


def train_and_predict(tiny: Tiny, trainer: str, out: Path, *more: str | Path) -> str:
    """Fold 0 and a prediction; returns what the training printed."""
    trained = run_warm(tiny.env, *tiny.train(0, trainer, *more)).succeeded()
    run_warm(tiny.env, *tiny.predict(tiny.raw / "imagesTs", out, [0], trainer)).succeeded()
    (scan,) = (tiny.raw / "imagesTs").glob("*_0000.nii.gz")
    image, prediction = (sitk.ReadImage(str(file)) for file in (scan, out / scan.name.replace("_0000", "")))
    assert prediction.GetSize() == image.GetSize()
    assert (tiny.fold(0, trainer) / "validation" / "summary.json").is_file()
    return trained.stdout + trained.stderr


@pytest.mark.parametrize("preset", ["rlsss", "nnunet"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_unet_plan_under_both_presets(unet: Tiny, trainer: str, preset: str, tmp_path: Path) -> None:
    set_options(unet, preset=preset)
    printed = train_and_predict(unet, trainer, tmp_path)
    words = f"nnUNetv2_train {unet.id} 3d_fullres 0 -tr {TWIN} -p nnUNetPlans -device cpu"
    assert printed.count(f"the supervised twin, to compare with: {words}") == 2
    checkpoint = checkpoint_of(unet, trainer)
    assert not any("transformer" in key for key in checkpoint["network_weights"])
    if trainer == TWIN:
        assert "4 labelled cases, and no unlabelled one" in printed
    else:
        assert "student dice" in printed and "teacher dice" in printed
        assert "4 labelled and 2 unlabelled cases (2 of imagesUn, 0 with labels hidden)" in printed
        assert checkpoint["ctnet"]["teacher_weights"].keys() == checkpoint["network_weights"].keys()
    if trainer == RECIPROCAL:
        assert "phase: teacher" in printed and "phase: reciprocal" in printed
        for entry in (" h ", "feedback_share", "pseudo_label_share_0", "pseudo_label_share_2", "mean |h|"):
            assert entry in printed


@pytest.mark.parametrize("trainer", TRAINERS)
def test_behind_a_change_of_preset_a_training_is_validated_and_not_gone_on_with(unet: Tiny, trainer: str) -> None:
    set_options(unet, preset="nnunet")
    run_warm(unet.env, *unet.train(0, trainer)).succeeded()
    summary = unet.fold(0, trainer) / "validation" / "summary.json"
    summary.unlink()
    set_options(unet, preset="rlsss")
    refused = run_warm(unet.env, *unet.train(0, trainer, "--c"))
    assert refused.status == 2
    (line,) = refused.error_lines
    assert re.search("trained with Adam.*now has SGD.*set it back", line) and "Traceback" not in refused.stderr
    run_warm(unet.env, *unet.train(0, trainer, "--val")).succeeded()
    assert summary.is_file()


def test_alone_the_teacher_learns_as_the_twin_does_to_the_bit(unet: Tiny) -> None:
    set_options(unet, preset="nnunet")
    logged = []
    for trainer in (TWIN, RECIPROCAL):
        run_warm(unet.env, *unet.train(0, trainer)).succeeded()
        logged.append(checkpoint_of(unet, trainer)["logging"]["train_losses"])
    twin, teacher = logged
    assert twin[0] == teacher[0]  # of two steps: the second one is behind the first one's update
    assert twin[1] != teacher[1]  # reciprocal learning draws unlabelled patches in between


def test_the_step_that_is_measured_is_one_of_reciprocal_learning(unet: Tiny, tmp_path: Path) -> None:
    set_options(unet, preset="nnunet")
    flops = []
    for trainer in (TWIN, RECIPROCAL):
        out = tmp_path / f"{trainer}.json"
        words = [*unet.train(0, trainer)[1:], "--measure-steps", 1, "--measure-out", out]
        run_ranks(unet.env, *words, world=1)[0].succeeded()
        flops.append(json.loads(out.read_text())["flops"])
    assert 3 < flops[1] / flops[0] < 5


@pytest.mark.parametrize(
    ("number", "name", "options"),
    [
        (701, "SemiResEnc", {"plans": "nnUNetResEncUNetMPlans", "planner": "nnUNetPlannerResEncM", "channels": 2}),
        (702, "SemiSlices", {"configuration": "2d", "two_d": True, "ignore": True, "labels": ("core", "rim")}),
        (703, "SemiRegions", {"regions": True, "ignore": True, "labels": ("core", "rim")}),
    ],
)
@pytest.mark.parametrize("preset", ["rlsss", "nnunet"])
def test_every_kind_of_dataset(
    nnunet_env: NnunetEnv, number: int, name: str, options: dict[str, Any], preset: str, tmp_path: Path
) -> None:
    configuration, plans = options.get("configuration", "3d_fullres"), options.get("plans", "nnUNetPlans")
    tiny = Tiny(nnunet_env, number, name, configuration, plans)
    if not tiny.raw.exists():
        unet_plan(nnunet_env, number, name, **options)
    set_options(tiny, preset=preset)
    printed = train_and_predict(tiny, RECIPROCAL, tmp_path)
    assert "phase: reciprocal" in printed
    assert "No annotated pixels" not in printed
    if "regions" in options:
        run_warm(tiny.env, *tiny.train(0, MEAN_TEACHER)).succeeded()


def test_a_ctnet_plan_gives_ctnet_and_both_nets_start_from_pretrained_weights(
    planned_tiny: Tiny, fresh_nnunet_env: NnunetEnv, tmp_path: Path
) -> None:
    tiny = copied(planned_tiny, fresh_nnunet_env)
    run_warm(tiny.env, *tiny.train(0, TWIN)).succeeded()
    weights = tiny.fold(0, TWIN) / "checkpoint_final.pth"
    assert any(key.startswith("transformer.") for key in read_checkpoint(weights)["network_weights"])

    set_options(tiny, teacher_pretraining=0.34, recompute_teacher=True, student_finetune_epochs=1)
    block = tiny.read_plans()["configurations"][tiny.configuration]["ctnet"]
    tiny.change_configuration(ctnet={**block, "epochs": 3})
    printed = train_and_predict(tiny, RECIPROCAL, tmp_path / "out", "-pretrained_weights", weights)
    assert f"teacher, too, initialised from {weights}" in printed
    assert f"-p CTNetPlans -pretrained_weights {weights} -device cpu" in printed
    for phase in ("teacher", "reciprocal", "student"):
        assert printed.count(f"phase: {phase}\n") + printed.count(f"phase: {phase} ") == 1

    run_function(tiny.env, functools.partial(_keep_start, tiny, weights, tmp_path / "start.pth")).succeeded()
    start = torch.load(tmp_path / "start.pth", weights_only=True)
    pretrained = read_checkpoint(weights)["network_weights"]
    heads = [key for key in pretrained if HEADS in key]
    for net in ("student", "teacher"):
        assert start[net].keys() == pretrained.keys()
        assert all(torch.equal(start[net][key], pretrained[key]) for key in pretrained if key not in heads)
    assert any(not torch.equal(start["student"][key], start["teacher"][key]) for key in heads)
    run_function(tiny.env, functools.partial(_keep_start, tiny, weights, tmp_path / "twin.pth", TWIN)).succeeded()
    twin = torch.load(tmp_path / "twin.pth", weights_only=True)["student"]
    assert all(torch.equal(start["teacher"][key], twin[key]) for key in heads)  # what learns from labels starts alike


def copied(tiny: Tiny, env: NnunetEnv) -> Tiny:
    """A dataset's copy in other folders, to be changed at will."""
    for root in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(tiny.env.root / root / tiny.dataset, env.root / root / tiny.dataset)
    return Tiny(env, tiny.id, tiny.name, tiny.configuration, tiny.plans)


def _keep_start(tiny: Tiny, weights: Path, out: Path, kind: str = RECIPROCAL) -> None:
    """Build the trainer as the stock command does, up to the first step, and keep both networks."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    trainer = get_trainer_from_args(
        str(tiny.id), tiny.configuration, 1, kind, tiny.plans, device=torch.device("cpu")
    )
    maybe_load_checkpoint(trainer, False, False, str(weights))
    trainer.on_train_start()
    networks = {"student": trainer.network, **({"teacher": trainer.teacher} if trainer.teacher else {})}
    torch.save({name: network.state_dict() for name, network in networks.items()}, out)


def test_the_student_learns_from_pseudo_labels_alone(nnunet_env: NnunetEnv) -> None:
    """It starts at random behind the teacher's own epochs and never gets a label's gradient."""
    long_enough = ("epochs=7", "iterations=20", "val_iterations=4", "features_base=8")
    tiny = prepare(nnunet_env, 704, "SemiLearns", labelled=5, unlabelled=2, more=long_enough)
    set_options(tiny, teacher_pretraining=0.25, student_from_teacher=False, learning_rate=0.004)
    printed = run_warm(tiny.env, *tiny.train(0, RECIPROCAL)).succeeded().stdout
    dice = [float(value) for value in re.findall(r"student dice (\S+),", printed)]
    feedback = [float(value) for value in re.findall(r", h (\S+),", printed)]
    assert len(dice) == 7
    assert max(dice[:2]) < 0.3  # the teacher's phase
    assert dice[-1] > 0.6
    assert len(feedback) == 5
    assert feedback[0] > 0  # good pseudo-labels help


# Hidden labels.


def hide_labels(tiny: Tiny) -> tuple[list[str], list[str]]:
    """Fold 0 has two labelled cases, two with hidden labels, and one to validate on."""
    cases = sorted(file.stem for file in (tiny.preprocessed / FOLDER).glob("tr_???.b2nd"))
    (tiny.preprocessed / "splits_final.json").write_text(json.dumps([{"train": cases[1:], "val": cases[:1]}]))
    split = {"labeled": cases[1:3], "unlabeled": [cases[0], *cases[3:]]}
    (tiny.preprocessed / "semi_split.json").write_text(json.dumps(split))
    return split["labeled"], cases[3:]


def poison(tiny: Tiny, cases: list[str]) -> None:
    """Labels and class locations that would end or change any training that read them."""
    folder = tiny.preprocessed / FOLDER
    for case in cases:
        data, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
        image, labels = np.array(data), np.full_like(np.array(seg), 255)
        properties["class_locations"] = {1: np.full((5, 4), 10**6)}
        for file in folder.glob(f"{case}*"):
            file.unlink()
        nnUNetDatasetBlosc2.save_case(image, labels, properties, str(folder / case))


@pytest.mark.parametrize("fold", [0, "all"])
def test_poisoned_labels_of_unlabelled_cases_change_nothing(copy_of_planned: Tiny, fold: int | str) -> None:
    tiny = copy_of_planned
    labelled, hidden = hide_labels(tiny)
    if fold == "all":
        hidden = [case for case in ("tr_000", "tr_003", "tr_004") if case not in labelled]
    set_options(tiny, teacher_pretraining=0.0, student_from_teacher=False)
    ends = []
    for _ in range(2):
        printed = run_warm(tiny.env, *tiny.train(fold, RECIPROCAL)).succeeded().stdout
        count = f"2 labelled and {len(hidden)} unlabelled cases (0 of imagesUn, {len(hidden)} with labels hidden)"
        assert count in printed
        ends.append(checkpoint_of(tiny, RECIPROCAL, fold))
        poison(tiny, hidden)
    for first, second in zip(*(both_networks(end) for end in ends), strict=True):
        assert torch.equal(first, second)
    assert ends[0]["logging"]["mean_fg_dice"] == ends[1]["logging"]["mean_fg_dice"]
    if fold == 0:  # the poison works: a training that reads it ends
        (tiny.preprocessed / "semi_split.json").unlink()
        assert run_warm(tiny.env, *tiny.train(0, TWIN)).status != 0


def both_networks(checkpoint: dict[str, Any]) -> list[torch.Tensor]:
    return [*checkpoint["network_weights"].values(), *checkpoint["ctnet"]["teacher_weights"].values()]


def test_the_twin_reads_the_labelled_cases_alone_and_transductive_adds_validation_images(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    labelled, hidden = hide_labels(tiny)
    poison(tiny, hidden)
    run_warm(tiny.env, *tiny.train(0, TWIN)).succeeded()
    set_options(tiny, transductive=True)
    printed = run_warm(tiny.env, *tiny.train(0, MEAN_TEACHER)).succeeded().stdout
    assert f"{len(labelled)} labelled and {len(hidden) + 1} unlabelled cases" in printed


# Who predicts, and where the teacher comes from.


def test_the_teacher_predicts_if_it_is_asked_to_and_training_goes_on(copy_of_planned: Tiny, tmp_path: Path) -> None:
    tiny = copy_of_planned
    ends = {}
    for who in ("student", "teacher"):
        set_options(tiny, predict_with=who)
        train_and_predict(tiny, RECIPROCAL, tmp_path / who)
        ends[who] = checkpoint_of(tiny, RECIPROCAL)
    # The training is the same; whose weights are stock's changes.
    for key, value in ends["teacher"]["network_weights"].items():
        assert torch.equal(value, ends["student"]["ctnet"]["teacher_weights"][key])
    for key, value in ends["student"]["network_weights"].items():
        assert torch.equal(value, ends["teacher"]["ctnet"]["student_weights"][key])
    summaries = [json.dumps(end["logging"]["mean_fg_dice"]) for end in ends.values()]
    assert summaries[0] != summaries[1]
    again = run_warm(tiny.env, *tiny.train(0, RECIPROCAL, "--c")).succeeded()
    assert "Mean Validation Dice" in again.stdout
    set_options(tiny, predict_with="student")  # a finished training may change its mind
    run_warm(tiny.env, *tiny.train(0, RECIPROCAL, "--c")).succeeded()
    switched = checkpoint_of(tiny, RECIPROCAL)
    for first, second in zip(both_networks(switched), both_networks(ends["student"]), strict=True):
        assert torch.equal(first, second)


def test_a_supervised_checkpoint_starts_the_teacher_heads_included(copy_of_planned: Tiny, tmp_path: Path) -> None:
    tiny = copy_of_planned
    run_warm(tiny.env, *tiny.train(0, TWIN)).succeeded()
    weights = tiny.fold(0, TWIN) / "checkpoint_final.pth"
    set_options(tiny, teacher_weights=str(weights), student_from_teacher=True, learning_rate=1e-30)  # nothing moves
    printed = run_warm(tiny.env, *tiny.train(0, RECIPROCAL)).succeeded().stdout
    assert "phase: teacher" not in printed
    end, wanted = checkpoint_of(tiny, RECIPROCAL), read_checkpoint(weights)["network_weights"]
    for found in (end["network_weights"], end["ctnet"]["teacher_weights"]):
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
    # Only a start needs the file, and only a training the scans.
    weights.unlink()
    shutil.rmtree(tiny.preprocessed / f"{FOLDER}_unlabeled")
    again = run_warm(tiny.env, *tiny.train(0, RECIPROCAL, "--val")).succeeded()
    assert "Mean Validation Dice" in again.stdout


# What is refused.


def test_no_unlabelled_cases(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    shutil.rmtree(tiny.preprocessed / f"{FOLDER}_unlabeled")
    for trainer in (RECIPROCAL, MEAN_TEACHER):
        finished = run_warm(tiny.env, *tiny.train(0, trainer))
        check_refused(finished, tiny, "imagesUn", "not preprocessed", "ctnet preprocess-unlabeled -d 640")
    shutil.rmtree(tiny.raw / "imagesUn")
    finished = run_warm(tiny.env, *tiny.train(0, RECIPROCAL))
    check_refused(finished, tiny, "fold 0: no unlabelled cases", "imagesUn", "ctnet preprocess-unlabeled -d 640")
    labelled, _ = hide_labels(tiny)
    (tiny.preprocessed / "semi_split.json").write_text(json.dumps({"labeled": labelled, "unlabeled": []}))
    check_refused(run_warm(tiny.env, *tiny.train(0, RECIPROCAL)), tiny, "no unlabelled cases", "semi_split.json")


def test_a_case_that_is_labelled_and_unlabelled(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    split = {"labeled": ["tr_000", "tr_001"], "unlabeled": ["tr_001", "tr_002"]}
    (tiny.preprocessed / "semi_split.json").write_text(json.dumps(split))
    finished = run_warm(tiny.env, *tiny.train(0, RECIPROCAL))
    check_refused(finished, tiny, "semi_split.json", "tr_001 is both labelled and unlabelled")
    (tiny.preprocessed / "semi_split.json").unlink()
    rename_scan(tiny, "un_000", "tr_001")
    finished = run_warm(tiny.env, *tiny.train("all", RECIPROCAL))
    check_refused(finished, tiny, "tr_001", "also labelled", "imagesUn")


def test_validation_cases_among_the_unlabelled(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    hide_labels(tiny)
    cases = [f"tr_00{index}" for index in range(5)]
    (tiny.preprocessed / "splits_final.json").write_text(json.dumps([{"train": cases, "val": cases[4:]}]))
    finished = run_warm(tiny.env, *tiny.train(0, RECIPROCAL))
    check_refused(finished, tiny, "splits_final.json, fold 0", "tr_004", "validation case", "transductive")
    (tiny.preprocessed / "semi_split.json").unlink()
    (tiny.preprocessed / "splits_final.json").write_text(json.dumps([{"train": cases[:4], "val": cases[4:]}]))
    record = tiny.preprocessed / f"{FOLDER}_unlabeled" / "un_001.json"
    content = json.loads(record.read_text())
    copied_from = describe_input(tiny.raw / "imagesTr" / "tr_004_0000.nii.gz")
    record.write_text(json.dumps(content | {"inputs": [{**copied_from, "name": "un_001_0000.nii.gz"}]}))
    for trainer in (RECIPROCAL, "nnUNetTrainerVolF"):
        check_refused(run_warm(tiny.env, *tiny.train(0, trainer)), tiny, "un_001", "same file as tr_004", "imagesUn")
    record.write_text(json.dumps(content))
    rename_scan(tiny, "un_000", "tr_004")
    check_refused(run_warm(tiny.env, *tiny.train(0, RECIPROCAL)), tiny, "tr_004", "also labelled")


def rename_scan(tiny: Tiny, scan: str, name: str) -> None:
    """Give a preprocessed unlabelled scan another name, its record included."""
    folder = tiny.preprocessed / f"{FOLDER}_unlabeled"
    for file in folder.glob(f"{scan}*"):
        file.rename(folder / file.name.replace(scan, name))
    record = folder / f"{name}.json"
    record.write_text(record.read_text().replace(scan, name))


def test_another_number_of_channels(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    folder = tiny.preprocessed / f"{FOLDER}_unlabeled"
    file = folder / "un_001.b2nd"
    image = np.array(blosc2.open(str(file)))
    file.unlink()
    blosc2.asarray(np.concatenate([image, image]), urlpath=str(file))
    record = json.loads((folder / "un_001.json").read_text())
    record["outputs"][file.name] = file.stat().st_size
    (folder / "un_001.json").write_text(json.dumps(record))
    check_refused(run_warm(tiny.env, *tiny.train(0, RECIPROCAL)), tiny, "un_001", "2 channels", "wants 1", "imagesUn",
                  "run ctnet preprocess-unlabeled -d 640")  # fmt: skip


def test_a_teacher_of_other_plans(copy_of_planned: Tiny, unet: Tiny, tmp_path: Path) -> None:
    tiny = copy_of_planned
    run_warm(unet.env, *unet.train(1, TWIN)).succeeded()
    other = unet.fold(1, TWIN) / "checkpoint_final.pth"
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no checkpoint")
    for file, words in ((other, ["another plan or dataset", "tensors differ"]), (broken, ["cannot be read"]),
                        (tmp_path / "missing.pth", ["no such checkpoint"])):  # fmt: skip
        set_options(tiny, teacher_weights=str(file))
        check_refused(run_warm(tiny.env, *tiny.train(0, RECIPROCAL)), tiny, str(file), *words)
    set_options(tiny, teacher_weights=None, teacher_from_pretrained=True)
    finished = run_warm(tiny.env, *tiny.train(0, RECIPROCAL))
    check_refused(finished, tiny, "teacher_from_pretrained", "-pretrained_weights")
    set_options(tiny, teacher_from_pretrained=False, student_finetune_epochs=2)
    check_refused(run_warm(tiny.env, *tiny.train(0, RECIPROCAL)), tiny, "student_finetune_epochs=2", "of the 2 epochs")
