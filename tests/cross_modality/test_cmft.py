"""The feature transition: losses by hand, the pool, where gradients go, transfer, and that the losses fall."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

from ctnet_nnunet.architectures.cross_modality import CMFFNet, PaperBranch, initialise
from ctnet_nnunet.checkpoints import HEADS
from ctnet_nnunet.cross_modality.cmft import (
    CMFTOptions,
    CMFTStep,
    Discriminators,
    ImagePool,
    Translators,
    adversarial,
    cycle_loss,
    discriminator_loss,
    frozen,
)

SIZE = (16, 16, 32)


def network(classes: int = 3, seed: int = 0) -> CMFFNet:
    torch.manual_seed(seed)
    built = CMFFNet((PaperBranch(1, classes, 2), PaperBranch(1, classes, 2)), [[0], [1]], classes)
    initialise(built)
    return built


def step(options: CMFTOptions | None = None) -> CMFTStep:
    torch.manual_seed(0)
    judges = Discriminators(1, 1, features=2, levels=3)
    generator = torch.Generator().manual_seed(0)
    return CMFTStep(Translators(network()), judges, judges, options or CMFTOptions(), generator)


def images() -> tuple[Tensor, Tensor]:
    """Two contrasts of one patch: a blob in noise, bright in a and dark in b."""
    generator = torch.Generator().manual_seed(2)
    blob = torch.zeros(1, 1, *SIZE)
    blob[..., 4:12, 4:12, 8:24] = 2
    noise = 0.2 * torch.randn(2, 1, 1, *SIZE, generator=generator)
    return blob + noise[0], 1 - blob + noise[1]


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_losses_by_hand() -> None:
    zeros = torch.zeros(2, 1, 3, 3, 3)
    assert float(discriminator_loss(zeros, zeros)) == 0.5
    assert float(discriminator_loss(zeros + 1, zeros)) == 0.0
    assert float(adversarial(zeros + 3, True)) == 4.0
    assert float(adversarial(zeros + 3, False)) == 9.0
    image = torch.randn(1, 1, 4, 4, 4)
    assert float(cycle_loss(image, image)) == 0.0
    assert float(cycle_loss(image, image - 2)) == pytest.approx(2.0)


def test_the_generators_loss_is_made_of_its_parts() -> None:
    unit = step(CMFTOptions(cycle_weight=3.0, paired_weight=0.5))
    losses, made = unit.generators(*images())
    a, b = images()
    assert set(made) == {"fake_a", "fake_b", "cycled_a", "cycled_b"}
    torch.testing.assert_close(made["cycled_a"], unit.translators.b_to_a(unit.translators.a_to_b(a)))  # type: ignore[operator]
    cycles = (made["cycled_a"] - a).abs().mean() + (made["cycled_b"] - b).abs().mean()
    paired = (made["fake_a"] - a).abs().mean() + (made["fake_b"] - b).abs().mean()
    fooled = (unit.discriminators.a(made["fake_a"]) - 1).square().mean()  # type: ignore[operator]
    fooled = fooled + (unit.discriminators.b(made["fake_b"]) - 1).square().mean()  # type: ignore[operator]
    torch.testing.assert_close(losses["loss"], fooled + 3 * cycles + 0.5 * paired)


def test_the_cycle_of_identities_costs_nothing() -> None:
    """G and F that give back what they get, and discriminators that give 0: what is left is the adversarial part."""
    unit = step()

    class Identities(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"fake_a": b, "fake_b": a, "cycled_a": a, "cycled_b": b}

    unit.translators = Identities()
    nn.init.zeros_(unit.discriminators.a.layers[-1].weight)  # type: ignore[union-attr, index]
    nn.init.zeros_(unit.discriminators.b.layers[-1].weight)  # type: ignore[union-attr, index]
    losses, made = unit.generators(*images())
    assert float(losses["cycle_a"]) == float(losses["cycle_b"]) == 0.0
    biases = [float(judge.layers[-1].bias.detach()) for judge in (unit.discriminators.a, unit.discriminators.b)]  # type: ignore[union-attr, index, operator]
    assert float(losses["loss"].detach()) == pytest.approx(sum((bias - 1) ** 2 for bias in biases))
    judged = unit.judges(*images(), made)
    halves = [0.5 * ((bias - 1) ** 2 + bias**2) for bias in biases]
    assert float(judged["discriminators"].detach()) == pytest.approx(sum(halves))


def test_gradients_go_where_they_belong() -> None:
    unit = step()
    a, b = images()
    losses, made = unit.generators(a, b)
    losses["loss"].backward()
    assert gradients(unit.discriminators) == []
    for name, parameter in unit.translators.named_parameters():
        assert (parameter.grad is None) == (HEADS in name), name
    unit.translators.zero_grad(set_to_none=True)
    unit.judges(a, b, made)["discriminators"].backward()
    assert gradients(unit.translators) == []
    assert len(gradients(unit.discriminators)) == len(list(unit.discriminators.parameters()))


def test_frozen_parameters_thaw_even_behind_an_error() -> None:
    module = nn.Linear(1, 1)
    with contextlib.suppress(RuntimeError), frozen(module):
        assert not any(parameter.requires_grad for parameter in module.parameters())
        raise RuntimeError
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_pool_gives_what_it_gets_while_it_fills_and_then_often_older_ones() -> None:
    pool, generator = ImagePool(3), torch.Generator().manual_seed(0)
    given = [torch.full((1, 1, 2), float(number)) for number in range(200)]
    got = [float(pool.query(image, generator).mean()) for image in given]
    assert got[:3] == [0.0, 1.0, 2.0]
    older = [value < number for number, value in enumerate(got)]
    assert 0.35 < sum(older[3:]) / len(older[3:]) < 0.65
    returned = [value for value, old in zip(got, older, strict=True) if old]
    assert len(set(returned)) == len(returned)  # an older image is given once, then it is replaced
    assert {0.0, 1.0, 2.0} <= set(returned)  # every slot is drawn
    assert len(pool.images) == 3
    none = ImagePool(0)
    assert torch.equal(none.query(given[5], generator), given[5]) and none.images == []


def test_the_pool_keeps_no_graph_and_a_restored_one_goes_on_alike() -> None:
    generator = torch.Generator().manual_seed(3)
    pool = ImagePool(2)
    for number in range(5):
        out = pool.query(torch.full((1, 1, 2), float(number), requires_grad=True), generator)
        assert not out.requires_grad
    other, state = ImagePool(2), generator.get_state()
    other.load_state(pool.state(), torch.device("cpu"))
    again = torch.Generator()
    again.set_state(state)
    for number in range(5, 30):
        image = torch.full((1, 1, 2), float(number))
        assert torch.equal(pool.query(image, generator), other.query(image, again))


def test_generators_start_branches_to_the_bit() -> None:
    """As ``-pretrained_weights`` does it: all keys but heads; the features on the same image are the generator's."""
    first, second = network(seed=0), network(classes=5, seed=1)
    translators, fresh = Translators(first), {key: value.clone() for key, value in second.state_dict().items()}
    loaded = {key: value for key, value in first.state_dict().items() if HEADS not in key}
    second.load_state_dict({**fresh, **loaded})
    for key, value in second.state_dict().items():
        assert torch.equal(value, fresh[key] if HEADS in key else first.state_dict()[key]), key
    a, b = images()
    torch.testing.assert_close(second.branch_a.features(a)[0], translators.branch_a.features(a)[0])
    made = translators.heads["b_to_a"](second.branch_b.features(b)[0])
    torch.testing.assert_close(made, translators.b_to_a(b))


def test_the_losses_fall_on_one_patch() -> None:
    unit = step()
    a, b = images()
    optimizers = [torch.optim.Adam(module.parameters(), 5e-3) for module in (unit.translators, unit.discriminators)]
    history = []
    for _ in range(60):
        losses, made = unit.generators(a, b)
        optimizers[0].zero_grad()
        losses["loss"].backward()
        optimizers[0].step()
        judged = unit.judges(a, b, made)
        optimizers[1].zero_grad()
        judged["discriminators"].backward()
        optimizers[1].step()
        cycles = losses["cycle_a"] + losses["cycle_b"]
        history.append([float(cycles.detach()), float(judged["discriminators"].detach())])
    first, last = history[0], [sum(column[-5:]) / 5 for column in zip(*history, strict=True)]
    assert last[0] < 0.5 * first[0]
    assert last[1] < first[1]


def test_bf16_is_finite() -> None:
    unit = step()
    with torch.autocast("cpu", torch.bfloat16):
        losses, made = unit.generators(*images())
        judged = unit.judges(*images(), made)
    assert all(torch.isfinite(value) for value in [*losses.values(), *judged.values()])


@pytest.mark.parametrize("wrong", [{"cycle_weight": -1.0}, {"paired_weight": -0.1}, {"pool_size": -1}])
def test_options_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        CMFTOptions(**wrong)  # type: ignore[arg-type]
