"""The cost of a step, measured in one process and in two by the real trainer; nothing of it stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.pretext import PRETEXTS
from ctnet_nnunet.pretext.base import PretextContext, build_pretext
from ctnet_nnunet.train.arguments import parse_arguments
from tests.conftest import NnunetEnv
from tests.end_to_end.distributed.launch import run_ranks
from tests.end_to_end.distributed.test_refusals import words
from tests.end_to_end.tiny import PRETRAINER, TRAINER, Tiny, prepare


@pytest.fixture(scope="module")
def tiny(nnunet_env: NnunetEnv) -> Tiny:
    return prepare(nnunet_env, 657, "StepCost", unlabelled=0)


def test_one_process_and_two(tiny: Tiny, tmp_path: Path) -> None:
    costs = []
    for world in (1, 2):
        out = tmp_path / f"{world}.json"
        measured = run_ranks(tiny.env, *words(tiny, TRAINER), "--measure-steps", 1, "--measure-out", out, world=world)
        assert [rank.status for rank in measured] == [0] * world, measured[0].stderr
        costs.append(json.loads(out.read_text()))
        (line,) = [line for line in measured[0].stdout.splitlines() if "GFLOP" in line]
        assert line.startswith(f"{TRAINER}, {tiny.plans} 3d_fullres, {world} process")
        assert not any("GFLOP" in rank.stdout for rank in measured[1:])
    alone, together = costs
    assert alone["joined_bytes"] == 0
    assert together["joined_bytes"] == 4 * together["parameters"] > 0
    # In a distributed training the lowest output's head is trained, too.
    assert alone["flops"] <= together["flops"] < 1.01 * alone["flops"]
    assert alone["flops"] > 2 * alone["parameters"]
    assert together["batch"] == alone["batch"] == 2
    assert len(together["seconds"]) == 1 and together["seconds"][0] > 0
    assert not tiny.fold(0).exists()
    assert not list(tiny.env.results.glob(".ctnet_*"))


def test_a_pretraining_that_has_no_use_for_the_decoder_does_not_join_it(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    measured = run_ranks(tiny.env, *words(tiny, PRETRAINER), "--measure-steps", 1, "--measure-out", out, world=2)
    assert [rank.status for rank in measured] == [0, 0], measured[0].stderr
    cost = json.loads(out.read_text())
    plans = json.loads(tiny.plans_file.read_text())
    network = network_from_plan(plans["configurations"]["3d_fullres"]["architecture"], 1, 2, True)
    context = PretextContext((16,) * 3, (16,) * 3, (1.0,) * 3, 0, 1)
    pretext = build_pretext(PRETEXTS, network, context, {"rotation": 1, "masked_features": 1}, {})
    trained = sum(parameter.numel() for parameter in pretext.parameters() if parameter.requires_grad)
    own = ("decoder.stages.", "decoder.transpconvs.", "decoder.seg_layers.")  # the decoder also holds the encoder
    decoder = sum(parameter.numel() for name, parameter in network.named_parameters() if name.startswith(own))
    encoder = sum(parameter.numel() for parameter in network.encoder.parameters())
    assert cost["joined_bytes"] == 4 * (trained - decoder) > 4 * encoder


@pytest.mark.parametrize("more", [["--c"], ["--val"], ["-num_gpus", "2"]])
def test_what_does_not_go_together(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["501", "3d_fullres", "0", "--measure-steps", "2", *more])
    assert ended.value.code == 2
    assert "--measure-steps: not with --c, --val or -num_gpus" in capsys.readouterr().err
