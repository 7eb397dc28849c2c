"""The steps of a real dataset's cross-validation, its refusals, and what is said of its cost; nothing is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.checkpoints import read_checkpoint
from ctnet_nnunet.cli.main import app
from ctnet_nnunet.cluster.beginnings import note_beginning
from ctnet_nnunet.cluster.crossval import Crossval, Request, plan_crossval, write_splits
from ctnet_nnunet.cluster.estimate import checkpoint_bytes, network_parameters
from ctnet_nnunet.cluster.run_step import lock_folder
from ctnet_nnunet.cluster.step import needed
from ctnet_nnunet.cluster.trainers import find_trainer, schedule_of
from ctnet_nnunet.errors import CTNetError, DataError, SetupError
from ctnet_nnunet.shim_path import VARIABLE, trainer_names, with_shim
from tests.conftest import NnunetEnv
from tests.end_to_end.tiny import PRETRAINER, TRAINER, Tiny, prepare


@pytest.fixture(scope="module")
def tiny(nnunet_env: NnunetEnv) -> Tiny:
    return prepare(nnunet_env, 791, "Chain", unlabelled=1, more=("epochs=3", "pretrain.epochs=5"))


@pytest.fixture(autouse=True)
def trainers_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command line does."""
    monkeypatch.setenv(VARIABLE, with_shim(None))


def planned(tiny: Tiny, **changed: object) -> Crossval:
    settings = {"trainer": TRAINER, "plans": tiny.plans, "pretrainer": PRETRAINER, "device": "cpu", **changed}
    return plan_crossval(Request(str(tiny.id), tiny.configuration, **settings))  # type: ignore[arg-type]


def test_each_fold_starts_from_its_own_pretraining(tiny: Tiny) -> None:
    crossval = planned(tiny)
    steps = {step.name: step for step in crossval.steps}
    assert list(steps) == [
        "preprocess", "unlabeled", *(f"pretrain_{fold}" for fold in range(5)), *(f"fold_{fold}" for fold in range(5)),
        "ensemble", "report",
    ]  # fmt: skip
    for fold in range(5):
        assert steps[f"fold_{fold}"].weights == tiny.pretrained(fold)
        assert f"pretrain_{fold}" in steps[f"fold_{fold}"].after
        assert steps[f"pretrain_{fold}"].words[3] == str(fold)
        assert steps[f"fold_{fold}"].folder == tiny.fold(fold)
    words = steps["preprocess"].words  # nnUNetv2_preprocess takes a number, no name
    assert words[words.index("-d") + 1] == str(crossval.target.dataset)[7:10].lstrip("0")
    assert steps["preprocess"].finished and "preprocess" not in {step.name for step in needed(crossval.steps)}
    assert [step.name for step in planned(tiny, pretrainer=None, folds=(3,)).steps] == [
        "preprocess", "fold_3", "ensemble", "report",
    ]  # fmt: skip
    several = planned(tiny, gpus=2, device="cuda").steps[-3]
    assert several.words[:4] == ("torchrun", "--standalone", "--nproc-per-node", "2") and several.processes == 2
    assert "ctnet_nnunet.train" in several.words and "--batch-per-rank" not in several.words
    grown = planned(tiny, gpus=4, device="cuda", batch_per_rank=1)
    assert [step.words[-2:] for step in grown.steps if step.folder] == [("--batch-per-rank", "1")] * 10


def test_chains_of_two_models_meet_at_what_they_share(tiny: Tiny) -> None:
    mine, stock = planned(tiny), planned(tiny, trainer="nnUNetTrainer")
    places = [{step.name: lock_folder(c.folder, step) for step in c.steps} for c in (mine, stock)]
    shared = {name for name in places[0] if places[0][name] == places[1][name]}
    assert shared == {"preprocess", "unlabeled", *(f"pretrain_{fold}" for fold in range(5))}


def test_the_folds_are_nnunet_s(tiny: Tiny) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    crossval = planned(tiny)
    write_splits(crossval.target)
    file = tiny.preprocessed / "splits_final.json"
    ours = json.loads(file.read_text())
    file.unlink()
    trainer = nnUNetTrainer.__new__(nnUNetTrainer)
    trainer.fold, trainer.folder_with_segs_from_previous_stage = 0, None
    trainer.preprocessed_dataset_folder_base = str(tiny.preprocessed)
    trainer.preprocessed_dataset_folder = str(tiny.preprocessed / "nnUNetPlans_3d_fullres")
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    trainer.dataset_class, trainer.print_to_log_file = nnUNetDatasetBlosc2, lambda *words, **more: None
    trainer.do_split()
    assert json.loads(file.read_text()) == ours
    file.unlink()


def test_refusals(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for changed, expected in (
        ({"trainer": "nnUNetTrainerMagic"}, "no such trainer"),
        ({"trainer": PRETRAINER}, "pretrains only; give it with --pretrain"),
        ({"pretrainer": TRAINER}, "no pretraining trainer"),
        ({"folds": (7,)}, "there are 5 folds, 0 to 4"),
        ({"plans": "OtherPlans"}, "no plans 'OtherPlans'"),
        (
            {"gpus": 4},
            "the plan's batch of 2 is smaller than the 4 processes; start 2 of them, or give --batch-per-rank",
        ),
        ({"gpus": 1, "batch_per_rank": 2}, "--batch-per-rank: only with --gpus-per-job 2 or more"),
    ):
        with pytest.raises(CTNetError, match=expected):
            planned(tiny, **changed)
    dataset = tiny.preprocessed / "dataset.json"
    content = dataset.read_text()
    labels = tmp_path / "labelsTr"
    shutil.move(tiny.raw / "labelsTr", labels)
    try:
        with pytest.raises(DataError, match="0 labelled cases are too few for 5 folds"):
            planned(tiny)
    finally:
        shutil.move(labels, tiny.raw / "labelsTr")
        dataset.write_text(content)
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(SetupError, match="nnUNet_results is not set"):
        planned(tiny)


def dry_run(tiny: Tiny, *more: str) -> str:
    words = ["crossval", str(tiny.id), tiny.configuration, "-p", tiny.plans, "--pretrain", PRETRAINER, "-device", "cpu"]
    result = CliRunner().invoke(app, [*words, "--dry-run", "--folds", "0", "1", *more])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_cost_is_measured_or_called_unknown(tiny: Tiny) -> None:
    text = dry_run(tiny)
    assert "unlabeled: job" in text and "folds: array of 2, behind pretrain, task by task" in text
    unknown = f"2 trainings of {TRAINER}, 3 epochs each: unknown, since no epoch of it was measured here on cpu in 1"
    assert unknown in text
    architecture = tiny.read_plans()["configurations"][tiny.configuration]["architecture"]
    network = network_from_plan(architecture, 1, 3, True)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    megabytes = 4 * 3 * 3 * 4 * parameters / 1e6  # trainings, checkpoints, weights and two moments, bytes
    assert f"checkpoints about {megabytes:.1f} MB ({parameters:,} parameters)" in text
    assert not (tiny.env.results / tiny.dataset).exists()

    # 2 trainings of 5 epochs and 2 of 3, a quarter of an hour each
    text = dry_run(tiny, "--epoch-seconds", "900")
    assert "machine hours: 2.5 for 2 trainings of nnUNetTrainerCTNetPretrain" in text
    assert f"machine hours: 1.5 for 2 trainings of {TRAINER}" in text and "(--epoch-seconds)" in text

    log = tiny.fold(4) / "training_log_2026_11_27_20_43_48.txt"
    log.parent.mkdir(parents=True)
    times = "".join(f"x: Epoch {n}\nx: Epoch time: {seconds} s\n" for n, seconds in enumerate((500, 30, 36, 42)))
    log.write_text(times)
    try:
        (log.parent / "debug.json").write_text(json.dumps({"device": "cuda:0", "is_ddp": "False"}))
        assert unknown in dry_run(tiny), "on another device"
        (log.parent / "debug.json").write_text(json.dumps({"device": "cpu", "is_ddp": "False"}))
        text = dry_run(tiny)
        assert "machine hours: 0.06 for 2 trainings" in text
        assert "measured on cpu in 1 process, median of 3 epochs in" in text

        reciprocal = tiny.fold(3, "nnUNetTrainerReciprocal")
        shutil.copytree(log.parent, reciprocal)
        # Two epochs of the teacher's alone, and one of both that takes four times as long: 2 trainings of 6 times 30 s.
        (reciprocal / log.name).write_text(times.replace("36", "120").partition("x: Epoch 3")[0])
        text = dry_run(tiny, "-tr", "nnUNetTrainerReciprocal")
        assert "machine hours: 0.1 for 2 trainings of nnUNetTrainerReciprocal, 3 epochs of 60 s" in text
        assert "median of 2 epochs in" in text and "longest epochs are taken as 4 times its shortest" in text
    finally:
        shutil.rmtree(tiny.env.results / tiny.dataset)


def test_a_fold_of_another_beginning_is_no_result(tiny: Tiny) -> None:
    words = ["crossval", str(tiny.id), tiny.configuration, "-p", tiny.plans, "-device", "cpu", "--folds", "0"]
    scratch = planned(tiny, pretrainer=None)
    fold = next(step for step in scratch.steps if step.name == "fold_0")
    note_beginning(scratch.folder, fold)
    fold.proofs[0].parent.mkdir(parents=True)
    fold.proofs[0].write_text("{}")
    try:
        result = CliRunner().invoke(app, [*words, "--pretrain", PRETRAINER, "--dry-run"])
        assert isinstance(result.exception, SetupError) and "began without a pretraining" in str(result.exception)
        shutil.rmtree(scratch.folder)
        text = dry_run(tiny)
        assert "not begun by ctnet crossval, so from which pretraining is not known: fold 0\n" in text
    finally:
        shutil.rmtree(tiny.env.results / tiny.dataset)


def test_epochs_and_checkpoints_of_every_trainer(tiny: Tiny, tmp_path: Path) -> None:
    """The mode is the class's, and what a checkpoint takes is what a trainer writes behind its first step."""
    block = tiny.read_plans()["configurations"][tiny.configuration]
    own = [name for name in trainer_names() if (schedule := schedule_of(name, block)) and schedule.epochs]
    assert own == trainer_names() and schedule_of("nnUNetTrainer", block) is None
    crossval = planned(tiny)
    for name in (TRAINER, "nnUNetTrainerMeanTeacher", "nnUNetTrainerReciprocal", "nnUNetTrainerStockSGD"):
        trainer = find_trainer(name)(tiny.read_plans(), tiny.configuration, 0, read_dataset(tiny), torch.device("cpu"))
        trainer.initialize()
        optimisers = [value for value in vars(trainer).values() if isinstance(value, torch.optim.Optimizer)]
        for optimiser in {id(o): o for o in optimisers}.values():
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            optimiser.step()
        trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
        written = tensor_bytes(read_checkpoint(tmp_path / "checkpoint_latest.pth"))
        expected = checkpoint_bytes(name, network_parameters(crossval, name))
        assert written == pytest.approx(expected, rel=0.1), name
    shutil.rmtree(tiny.env.results / tiny.dataset, ignore_errors=True)


def read_dataset(tiny: Tiny) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tiny.preprocessed / "dataset.json").read_text())
    return content


def tensor_bytes(value: Any) -> int:
    """Of the weights and moments in a checkpoint, each once: nnU-Net's decoders name the encoder's again."""
    storages: dict[int, int] = {}

    def collect(part: Any) -> None:
        if isinstance(part, torch.Tensor) and part.numel() > 1 and part.is_floating_point():
            storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            collect(inner)

    collect(value)
    return sum(storages.values())
