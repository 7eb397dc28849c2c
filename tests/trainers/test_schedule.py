"""The learning rate over epochs and AdamW's groups, against arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ctnet_nnunet.planning.options import Schedule, read_options
from ctnet_nnunet.pretext import PRETEXTS
from ctnet_nnunet.pretext.base import build_pretext
from ctnet_nnunet.trainers.schedule import PhasedScheduler, TenfoldScheduler, WarmupPolyScheduler, adamw, sgd
from tests.pretext.units import CUBE, context_of, network_of

SCHEDULE: Schedule = read_options({"learning_rate": 0.01, "weight_decay": 0.05}).schedule("supervised")


def rates(epochs: int, warmup: float, initial: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=initial)
    scheduler = WarmupPolyScheduler(optimizer, initial, epochs, warmup)
    found = []
    for epoch in range(epochs):
        scheduler.step(epoch)  # as nnU-Net's on_train_epoch_start does
        found.append(optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == [found[-1]]
    return found


def test_the_rate_rises_linearly_and_falls_as_nnunets() -> None:
    expected = [0.25, 0.5, 0.75, 1.0, (1 - 1 / 7) ** 0.9, (1 - 2 / 7) ** 0.9, (1 - 3 / 7) ** 0.9]
    assert rates(10, 3)[:7] == pytest.approx(expected)
    assert rates(10, 3)[-1] == pytest.approx((1 / 7) ** 0.9)


def test_without_warm_up_it_is_stocks_schedule() -> None:
    assert rates(5, 0, 0.01) == pytest.approx([0.01 * (1 - epoch / 5) ** 0.9 for epoch in range(5)])


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (1, 10), (2, 10), (10, 0.5), (10, 2.5), (1000, 10), (3, 3)])
def test_the_rate_is_always_positive_and_never_above_the_wanted_one(epochs: int, warmup: float) -> None:
    found = rates(epochs, warmup, 0.01)
    assert all(0 < rate <= 0.01 + 1e-12 for rate in found)
    peak = found.index(max(found))
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert peak <= min(warmup + 1, epochs - 1)


def test_steps_without_a_number_count_on_and_a_jump_goes_anywhere() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = WarmupPolyScheduler(optimizer, 1.0, 10, 3)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(9):
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(rates(10, 3))
    scheduler.step(4)  # a resumed training
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rates(10, 3)[4])


def test_every_group_gets_the_rate() -> None:
    optimizer = adamw([nn.Linear(2, 2)], SCHEDULE)
    WarmupPolyScheduler(optimizer, 0.01, 10, 1).step(0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.005]


def test_what_is_decayed_and_what_is_not() -> None:
    model = build_pretext(PRETEXTS, network_of(CUBE), context_of(CUBE), {"rotation": 1.0, "masked_features": 1.0}, {})
    optimizer = adamw([model], SCHEDULE, betas=(0.9, 0.95))
    decayed, others = ({id(parameter) for parameter in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert all(group["betas"] == (0.9, 0.95) and group["lr"] == 0.01 for group in optimizer.param_groups)
    teacher = {name for name, _ in model.named_parameters() if ".teacher." in name}
    assert teacher
    names = {name: parameter for name, parameter in model.named_parameters() if name not in teacher}
    free = {name for name, parameter in names.items() if id(parameter) in others}
    assert {"network.transformer.position_table", "tasks.masked_features.mask_token"} <= free
    assert all(name.endswith(("bias", "position_table", "mask_token")) or names[name].ndim == 1 for name in free)
    weights = ("qkv.weight", "conv.weight", "embedding.weight", "projection.weight")
    assert {id(names[name]) for name in names if name.endswith(weights)} <= decayed
    assert {id(names[name]) for name in names if ".norm" in name} <= others
    assert decayed | others == {id(parameter) for parameter in names.values()}  # and so none of the teacher's
    assert not decayed & others


@pytest.mark.parametrize("factor", [0.1, 0.0])
@pytest.mark.parametrize("by_sgd", [False, True])
def test_all_but_the_decoder_learns_at_a_share_of_the_rate(factor: float, by_sgd: bool) -> None:
    network = network_of(CUBE)
    if by_sgd:
        optimizer: torch.optim.Optimizer = sgd(network, SCHEDULE, 0.9, encoder_rate=factor)
        TenfoldScheduler(optimizer, 0.005, 10).step(0)
    else:
        optimizer = adamw([network], SCHEDULE, encoder_rate=factor)
        WarmupPolyScheduler(optimizer, 0.01, 10, 1).step(0)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    parts = {name: name.split(".")[0] for name in before}
    assert set(parts.values()) == {"encoder", "transformer", "decoder"}
    for name, parameter in network.named_parameters():
        assert rate_of[id(parameter)] == pytest.approx(0.005 * (1 if parts[name] == "decoder" else factor))
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if parts[name] == "decoder" or factor > 0}
    assert {group["weight_decay"] for group in optimizer.param_groups} == ({0.05} if by_sgd else {0.05, 0.0})


def test_an_optimiser_from_before_the_factor_goes_on() -> None:
    """Its groups in a checkpoint have no factor."""
    network = nn.Linear(2, 2)
    state = adamw([network], SCHEDULE).state_dict()
    for group in state["param_groups"]:
        del group["rate"]
    optimizer = adamw([network], SCHEDULE)
    optimizer.load_state_dict(state)
    WarmupPolyScheduler(optimizer, 0.01, 10, 1).step(0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.005]


def test_a_parameter_of_two_modules_is_taken_once() -> None:
    layer = nn.Linear(3, 3)
    groups = adamw([layer, nn.Sequential(layer)], SCHEDULE).param_groups
    assert [len(group["params"]) for group in groups] == [1, 1]


def test_the_published_rate_falls_tenfold_every_2500_of_6000_iterations() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = TenfoldScheduler(optimizer, 0.01, 60)
    found = []
    for epoch in range(60):
        scheduler.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.01] * 25 + [0.001] * 25 + [0.0001] * 10)


def test_each_phase_has_its_own_schedule() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    phases = [(0, WarmupPolyScheduler(optimizer, 1.0, 4, 0)), (4, WarmupPolyScheduler(optimizer, 1.0, 6, 0))]
    scheduler = PhasedScheduler(phases)
    found = []
    for epoch in range(10):
        scheduler.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(rates(4, 0) + rates(6, 0))


def test_sgd_leaves_frozen_parameters_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    (group,) = sgd(module, SCHEDULE, 0.9).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in module[0].parameters()]
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.9, 0.05, 0.01)
