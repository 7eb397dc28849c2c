"""The steps of a real dataset's cross-validation, its refusals, and what is said of its cost; nothing is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.cli.main import app
from ctnet_nnunet.cluster.crossval import Crossval, Request, plan_crossval, write_splits
from ctnet_nnunet.cluster.step import needed
from ctnet_nnunet.errors import CTNetError, DataError, SetupError
from tests.conftest import NnunetEnv
from tests.end_to_end.tiny import PRETRAINER, TRAINER, Tiny, prepare


@pytest.fixture(scope="module")
def tiny(nnunet_env: NnunetEnv) -> Tiny:
    return prepare(nnunet_env, 791, "Chain", unlabelled=1, more=("epochs=3", "pretrain.epochs=5"))


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
    several = planned(tiny, gpus=4, device="cuda").steps[-3].words
    assert several[:4] == ("torchrun", "--standalone", "--nproc-per-node", "4") and "ctnet_nnunet.train" in several


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
    assert f"2 trainings of {TRAINER}, 3 epochs each: unknown, since no epoch of it was measured here" in text
    architecture = tiny.read_plans()["configurations"][tiny.configuration]["architecture"]
    network = network_from_plan(architecture, 1, 3, True)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    megabytes = 4 * 3 * 3 * 4 * parameters / 1e6  # trainings, checkpoints, weights and two moments, bytes
    assert f"checkpoints up to {megabytes:.1f} MB ({parameters:,} parameters)" in text
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
        assert "machine hours: 0.06 for 2 trainings" in dry_run(tiny)
    finally:
        shutil.rmtree(tiny.env.results / tiny.dataset)
