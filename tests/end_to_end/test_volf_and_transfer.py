"""Volume fusion pretraining into the stock trainer and into CTNet, and weights carried to another plan, by commands."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from ctnet_nnunet.checkpoints import HEADS
from tests.conftest import NnunetEnv
from tests.end_to_end.commands import run_function, run_warm
from tests.end_to_end.tiny import PRETRAINER, TRAINER, Tiny, prepare
from tests.synthetic import make_dataset, plan_and_preprocess

VOLF = "nnUNetTrainerVolF"
BLOCK = {
    "preset": "s", "epochs": 1, "iterations": 2, "val_iterations": 1,
    "transformer": {"embed_dim": 24, "depth": 1, "heads": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def unet(nnunet_env: NnunetEnv) -> Tiny:
    """A stock U-Net plan of few features without imagesUn, with a ctnet block written by hand."""
    tiny = Tiny(nnunet_env, 690, "Volf", plans="nnUNetPlans")
    make_dataset(nnunet_env.raw, tiny.id, tiny.name, 5, 0)
    plan_and_preprocess(tiny.id, [tiny.configuration])
    tiny.change_configuration(ctnet=BLOCK)
    return tiny


def started_weights(tiny: Tiny, trainer: str, weights: Path, out: Path) -> None:
    """Build a trainer as the stock command does, load the weights as it does, and keep the network's."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    built = get_trainer_from_args(str(tiny.id), tiny.configuration, 0, trainer, tiny.plans, device=torch.device("cpu"))
    maybe_load_checkpoint(built, False, False, str(weights))
    torch.save(built.network.state_dict(), out)


def test_a_unet_plan_goes_into_the_stock_trainer_to_the_bit(unet: Tiny, tmp_path: Path) -> None:
    log = run_warm(unet.env, *unet.train(0, VOLF)).succeeded().stdout
    file = unet.fold(0, VOLF) / "checkpoint_final.pth"
    assert "volume_fusion/dice" in log
    assert "-tr nnUNetTrainer " in log and str(file) in log

    start = functools.partial(started_weights, unet, "nnUNetTrainer", file, tmp_path / "w.pth")
    run_function(unet.env, start).succeeded()
    started = torch.load(tmp_path / "w.pth", weights_only=True)
    pretrained = torch.load(file, weights_only=True)["network_weights"]
    assert pretrained.keys() == started.keys()
    for key in started:
        assert HEADS in key or torch.equal(started[key], pretrained[key]), key
    assert any(not torch.equal(started[key], pretrained[key]) for key in started if HEADS in key)


def test_tasks_combine_on_a_ctnet_plan_and_are_refused_by_name_on_a_unet(nnunet_env: NnunetEnv, unet: Tiny) -> None:
    weights = json.dumps({"rotation": 1, "masked_features": 1, "volume_fusion": 0.5})
    tiny = prepare(nnunet_env, 691, "Combined", labelled=5, unlabelled=1, more=[f"pretext={weights}", "epochs=1"])
    log = run_warm(nnunet_env, *tiny.train("all", PRETRAINER)).succeeded().stdout
    for metric in ("rotation/accuracy", "masked_features/token_std", "volume_fusion/dice"):
        assert metric in log
    state = torch.load(tiny.pretrained(), weights_only=True)["ctnet"]["pretext_state"]
    assert {key.split(".")[0] for key in state} == {"rotation", "masked_features", "volume_fusion"}
    loaded = run_warm(nnunet_env, *tiny.train(0, TRAINER, "-pretrained_weights", tiny.pretrained())).succeeded()
    assert "tensors from" in loaded.stdout

    unet.change_configuration(ctnet={**BLOCK, "pretext": {"rotation": 1, "volume_fusion": 1}})
    refused = run_warm(nnunet_env, *unet.train(1, VOLF))
    unet.change_configuration(ctnet=BLOCK)
    assert refused.status == 2
    assert len(refused.error_lines) == 1 and "'rotation'" in refused.error_lines[0]


def test_transfer_to_more_channels_loads_and_too_little_is_refused(
    nnunet_env: NnunetEnv, unet: Tiny, tmp_path: Path
) -> None:
    """The one-channel U-Net's checkpoint goes into a two-channel dataset's plan."""
    source = unet.fold(2, VOLF) / "checkpoint_final.pth"
    run_warm(nnunet_env, *unet.train(2, VOLF)).succeeded()
    two = Tiny(nnunet_env, 692, "TwoChannels", plans="nnUNetPlans")
    make_dataset(nnunet_env.raw, two.id, two.name, 5, 0, channels=2)
    plan_and_preprocess(two.id, [two.configuration])
    two.change_configuration(ctnet=BLOCK)
    out = tmp_path / "weights.pth"

    command = ("ctnet", "transfer", source, "-d", two.id, "-c", two.configuration, "-o", out, "-tr", "nnUNetTrainer")
    printed = run_warm(nnunet_env, *command).succeeded().stdout
    rows = {words[0]: words[1:] for words in map(str.split, printed.splitlines()[1:4])}
    assert "(input channels)" in printed and rows["adapted"][0] == "1"
    assert rows["skipped"] == ["0", "0.0%"], "heads are left out"
    assert int(rows["loaded"][0]) > 10
    started = functools.partial(started_weights, two, "nnUNetTrainer", out, tmp_path / "w.pth")
    run_function(nnunet_env, started).succeeded()
    first = "encoder.stages.0.0.convs.0.conv.weight"
    mine = torch.load(tmp_path / "w.pth", weights_only=True)[first]
    theirs = torch.load(source, weights_only=True)["network_weights"][first]
    torch.testing.assert_close(mine, (theirs / 2).expand(-1, 2, -1, -1, -1))

    again = run_warm(nnunet_env, *command)
    assert again.status == 2 and "exists already" in again.error_lines[0]
    refused = run_warm(nnunet_env, *command[:-1], "nnUNetTrainerCTNet", "--force", "--min-share", "1.0")
    assert refused.status == 2 and "parameters fit" in refused.error_lines[0]
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no checkpoint")
    wrong = run_warm(nnunet_env, "ctnet", "transfer", broken, *command[3:-3], tmp_path / "x.pth")
    assert wrong.status == 2 and len(wrong.error_lines) == 1 and not (tmp_path / "x.pth").exists()


def test_three_labelled_cases_train_as_fold_all_and_a_fold_number_is_refused(
    nnunet_env: NnunetEnv, tmp_path: Path
) -> None:
    """Few labels are what the package is for, and nnU-Net's five folds need five cases."""
    tiny = prepare(nnunet_env, 693, "Few", labelled=3, unlabelled=0, more=["epochs=1"])
    refused = run_warm(nnunet_env, *tiny.train(0, TRAINER))
    assert refused.status == 2
    assert len(refused.error_lines) == 1 and "fold all" in refused.error_lines[0]
    run_warm(nnunet_env, *tiny.train("all", TRAINER)).succeeded()
    run_warm(nnunet_env, *tiny.predict(tiny.raw / "imagesTs", tmp_path / "out", ["all"])).succeeded()
    assert list((tmp_path / "out").glob("*.nii.gz"))
