"""Pairs of sequences from dataset.json, the cross_modality table, and what they refuse in one line."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ctnet_nnunet.architectures.cross_modality import PaperBranch, PlanBranch
from ctnet_nnunet.benchmark.steps import Workload, architecture_of
from ctnet_nnunet.errors import CTNetError, DataError, PlanError
from ctnet_nnunet.planning.cross_modality import check_discriminator_patch, fusion_network, resolve_pairs
from ctnet_nnunet.planning.options import read_options


def channels(*names: str) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


@pytest.mark.parametrize(
    ("names", "pairs", "expected"),
    [
        (("T1", "QSM"), None, ((0,), (1,))),
        (("T1", "T1ce", "T2", "FLAIR"), None, ((0, 1), (2, 3))),
        (("FLAIR", "t1w", "t1Gd", "T2"), None, ((1, 2), (3, 0))),
        (("t1n", "t1c", "t2w", "t2f"), None, ((0, 1), (2, 3))),
        (("T1", "T2*", "QSM"), [["T1"], ["QSM", "T2*"]], ((0,), (2, 1))),
        (("T1", "T2*", "QSM"), [[0], [2]], ((0,), (2,))),
        (("a", "b", "c", "d", "e", "f"), [["a", "b", "c"], ["d", "e", "f"]], ((0, 1, 2), (3, 4, 5))),
    ],
)
def test_pairs(names: tuple[str, ...], pairs: Any, expected: Any) -> None:
    assert resolve_pairs(pairs, channels(*names)) == expected


def test_channels_go_by_their_numbers() -> None:
    many = {str(number): f"c{number}" for number in reversed(range(12))}
    assert resolve_pairs([["c2"], ["c10"]], many) == ((2,), (10,))


HOW = "cross_modality.pairs=[["


@pytest.mark.parametrize(
    ("names", "pairs", "kind", "words"),
    [
        (("T1",), None, DataError, ["1 channel (T1)", "at least two sequences"]),
        (("T1", "T2", "PD"), None, DataError, ["3 channels (T1, T2, PD)", "odd number", HOW]),
        (("T1", "T1ce", "T2", "PD"), None, DataError, ["not T1, T1c, T2 and FLAIR", HOW]),
        (("T1", "T1", "T2", "FLAIR"), None, DataError, ["not T1, T1c, T2 and FLAIR"]),
        (("a", "b", "c", "d", "e", "f"), None, DataError, ["6 channels", HOW]),
        (("T1", "T2"), [["T1"], ["SWI"]], PlanError, ["'SWI'", "T1, T2", HOW]),
        (("T1", "T2"), [["T1"], [2]], PlanError, ["names 2"]),
        (("T1", "T2"), [["T1"], ["T1"]], PlanError, ["stands twice"]),
        (("T1", "T2"), [["T1", "T2"]], PlanError, ["two groups", HOW]),
        (("T1", "T2"), [["T1"], []], PlanError, ["two groups"]),
    ],
)
def test_channels_that_make_no_pairs(names: tuple[str, ...], pairs: Any, kind: type[CTNetError], words: Any) -> None:
    with pytest.raises(kind) as caught:
        resolve_pairs(pairs, channels(*names))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def table(**values: Any) -> Any:
    return read_options({"cross_modality": {"pairs": [[0], [1]], "regions": False, **values}}).cross_modality


def configuration(*patch: int) -> dict[str, Any]:
    return {"patch_size": list(patch), "architecture": architecture_of("PlainConvUNet", Workload((16, 16, 16), 4))}


def test_the_network_follows_the_table() -> None:
    plan = configuration(32, 32, 32)
    paper = fusion_network(plan, table(features=2, masks="none", modality_dropout=0.1), 3)
    assert isinstance(paper.branch_a, PaperBranch) and paper.branch_a.widths == (2, 2)
    assert paper.fusion.masks == "none" and paper.fuses_alone and not paper.regions
    own = fusion_network(plan, table(arch="plan", regions=True), 3)
    assert isinstance(own.branch_b, PlanBranch) and own.regions and not own.fuses_alone


def test_a_paper_network_starts_as_its_seed_says() -> None:
    import torch

    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        weights.append(fusion_network(configuration(32, 32, 32), table(features=2), 3).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ((40, 56, 40), ["[40, 56, 40]", "multiples of 16", "cross_modality.arch=plan"]),
        ((16, 16, 16), ["single voxel", "cross_modality.arch=plan"]),
        ((64, 64), ["2d", "cross_modality.arch=plan"]),
    ],
)
def test_a_patch_that_the_papers_network_cannot_take(patch: tuple[int, ...], words: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        fusion_network(configuration(*patch), table(), 3)
    for word in words:
        assert word in str(caught.value)


def test_a_patch_too_small_for_the_discriminator() -> None:
    check_discriminator_patch([32, 48, 48], 4)
    message = re.escape("[16, 48, 48] is too small for a discriminator of 4 levels")
    with pytest.raises(PlanError, match=message) as caught:
        check_discriminator_patch([16, 48, 48], 4)
    assert "32 voxels" in str(caught.value) and "cross_modality.discriminator_levels" in str(caught.value)


def test_pairs_that_no_trainer_settled() -> None:
    with pytest.raises(PlanError, match="nnUNetTrainerCMFT or nnUNetTrainerCMFF"):
        fusion_network(configuration(32, 32, 32), read_options(None).cross_modality, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arch": "unet"}, r"cross_modality\.arch='unet'"),
        ({"modality_dropout": 1.0}, r"cross_modality\.modality_dropout=1\.0"),
        ({"pool_size": -1}, r"cross_modality\.pool_size=-1: 0 or more"),
        ({"pears": []}, r"unknown ctnet option cross_modality\.pears"),
    ],
)
def test_values_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        read_options({"cross_modality": values})


def test_each_stage_has_its_schedule() -> None:
    default = read_options(None)
    assert default.schedule("cmft").epochs * default.schedule("cmft").iterations == 10_000  # the paper's
    assert default.schedule("cmff").epochs * default.schedule("cmff").iterations == 30_000
    changed = read_options({"epochs": 7, "pretrain": {"iterations": 3}, "cmff": {"epochs": 9}})
    assert (changed.schedule("cmft").epochs, changed.schedule("cmff").epochs) == (7, 9)
    assert changed.schedule("cmft").iterations == 250
    with pytest.raises(PlanError, match=r"cmft\.epocs"):
        read_options({"cmft": {"epocs": 3}})
