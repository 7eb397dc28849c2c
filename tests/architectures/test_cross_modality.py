"""CMFF's network against the paper: sizes, routing of the pairs, guidance by masks, and what is left without a pair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctnet_nnunet.architectures.cross_modality import (
    Branch,
    CMFFNet,
    Discriminator,
    Masks,
    PaperBranch,
    PlanBranch,
    initialise,
    least_patch,
    mask_guided,
)
from ctnet_nnunet.architectures.from_plan import as_ctnet, network_from_plan
from ctnet_nnunet.architectures.transformer import TransformerOptions
from ctnet_nnunet.benchmark.steps import Workload, architecture_of
from ctnet_nnunet.checkpoints import HEADS
from ctnet_nnunet.cross_modality.cmft import Translators

PAIRS = [[0, 1], [2, 3]]
CLASSES = 3


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def paper_net(pairs: list[list[int]] = PAIRS, **options: object) -> CMFFNet:
    torch.manual_seed(0)
    first, second = (PaperBranch(len(pair), CLASSES, 2) for pair in pairs)
    network = CMFFNet((first, second), pairs, CLASSES, **options)  # type: ignore[arg-type]
    initialise(network)
    return network.eval()


def image(channels: int = 4, size: int = 32, samples: int = 1) -> Tensor:
    return torch.randn(samples, channels, *[size] * 3, generator=torch.Generator().manual_seed(1))


def test_the_papers_parameter_counts() -> None:
    generator = PaperBranch(2, 2)
    assert parameters(generator) == 4_121_682
    assert parameters(Discriminator(2)) == 698_609
    branches: tuple[Branch, Branch] = (PaperBranch(2, 4), PaperBranch(2, 4))
    network = CMFFNet(branches, PAIRS, 4)
    assert parameters(network.fusion) == 41_780
    translators = Translators(network)
    body = sum(tensor.numel() for key, tensor in network.branch_a.named_parameters() if HEADS not in key)
    assert body + parameters(translators.heads["a_to_b"]) == 4_121_682


def test_the_papers_shapes() -> None:
    """On a quarter of the channels where only sizes matter: 128³ takes seconds otherwise."""
    with torch.inference_mode():
        assert Discriminator(2, features=2)(torch.zeros(1, 2, 128, 128, 128)).shape == (1, 1, 7, 7, 7)
        network = paper_net()
        assert PaperBranch(2, 2, 2)(image()[:, :2]).shape == (1, 2, 32, 32, 32)
        assert Translators(network).a_to_b(image()[:, :2]).shape == (1, 2, 32, 32, 32)
        fine, coarse = network.branch_a.features(image()[:, :2])
        assert fine.shape == (1, 2, 32, 32, 32) and coarse.shape == (1, 2, 16, 16, 16)
        assert network(image()).shape == (1, CLASSES, 32, 32, 32)
        network.aux = True
        assert [tuple(output.shape) for output in network(image())] == [(1, CLASSES, 32, 32, 32)] * 3


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_the_least_patch_gives_one_score(levels: int) -> None:
    judge, edge = Discriminator(1, features=2, levels=levels), least_patch(levels)
    assert judge(torch.randn(1, 1, edge, edge, edge)).shape[2:] == (1, 1, 1)
    with pytest.raises((RuntimeError, ValueError)):
        judge(torch.randn(1, 1, edge // 2, edge // 2, edge // 2))


def test_a_branch_sees_its_own_pair_alone() -> None:
    network, whole = paper_net(aux=True), image()
    without_b = whole.clone()
    without_b[:, 2:] = 0
    with torch.inference_mode():
        before, after = network(whole), network(without_b)
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2]) and not torch.equal(before[0], after[0])


def test_channels_and_pairs_permuted_together_change_nothing() -> None:
    order = [2, 0, 3, 1]  # the new channel i is the old order[i]
    permuted_pairs = [[order.index(channel) for channel in pair] for pair in PAIRS]
    network, permuted = paper_net(), paper_net(permuted_pairs)
    with torch.inference_mode():
        assert torch.equal(network(image()), permuted(image()[:, order]))


@pytest.mark.parametrize("chosen", range(CLASSES))
def test_masks_of_one_class_leave_its_block_and_double_it(chosen: int) -> None:
    features = torch.randn(2, 5, 4, 4, 4)
    one_hot = torch.zeros(2, CLASSES, 4, 4, 4)
    one_hot[:, chosen] = 1
    blocks = mask_guided(features, one_hot + one_hot, "guided").unflatten(1, (CLASSES, 5))
    assert torch.equal(blocks[:, chosen], 2 * features)
    others = [block for block in range(CLASSES) if block != chosen]
    assert not blocks[:, others].any()


def test_the_blocks_always_sum_to_twice_the_features() -> None:
    network, features = paper_net(), torch.randn(2, 5, 4, 4, 4)
    mask = sum(network.masks(10 * torch.randn(2, CLASSES, 4, 4, 4)) for _ in "ab")
    assert isinstance(mask, Tensor)
    blocks = mask_guided(features, mask, "guided").unflatten(1, (CLASSES, 5))
    torch.testing.assert_close(blocks.sum(1), 2 * features)
    residual = mask_guided(features, mask, "residual").unflatten(1, (CLASSES, 5))
    torch.testing.assert_close(residual.sum(1), (2 + CLASSES) * features)
    assert mask_guided(features, mask, "none") is features


@pytest.mark.parametrize("masks", ["guided", "residual", "none"])
def test_the_fused_loss_reaches_the_branches_and_the_masks_are_not_detached(masks: Masks) -> None:
    network = paper_net(masks=masks)
    network(image(samples=1)).square().mean().backward()
    for name, parameter in network.named_parameters():
        heads = name.startswith("branch_") and ".seg_layers." in name
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        # A bias in front of an instance norm has no influence; a branch's head acts through its mask alone.
        if name.endswith("weight"):
            assert reached == (not heads or masks != "none"), name


def test_an_absent_pair_is_the_same_in_training_and_in_prediction() -> None:
    network, whole = paper_net(fuses_alone=True), image()
    with torch.inference_mode():
        for pair, channels in (("a", slice(0, 2)), ("b", slice(2, 4))):
            present = torch.tensor([[float(pair != "a"), float(pair != "b")]])
            trained = network(whole, present)
            network.absent = pair  # type: ignore[assignment]
            other = whole.clone()
            other[:, channels] = torch.nan  # not looked at
            predicted = network(other)
            network.absent = None
            torch.testing.assert_close(predicted, trained)
        torch.testing.assert_close(network(whole, torch.ones(1, 2)), network(whole))


def test_a_fusion_that_never_missed_a_pair_leaves_it_to_the_branch() -> None:
    network, whole = paper_net(), image()
    with torch.inference_mode():
        branch = network.branch_b(whole[:, 2:])
        network.absent = "a"
        assert torch.equal(network(whole), branch)


def test_regions_have_masks_of_their_own() -> None:
    logits = torch.randn(1, CLASSES, 4, 4, 4)
    torch.testing.assert_close(paper_net(regions=True).masks(logits), logits.sigmoid())
    torch.testing.assert_close(paper_net().masks(logits).sum(1), torch.ones(1, 4, 4, 4))


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResEncUNet-M", "CTNet"])
def test_the_plans_own_network_as_a_branch(kind: str) -> None:
    """Its logits are those of the network itself; every parameter is used, so nothing idles under DDP."""
    size = (16, 16, 16)
    architecture = architecture_of("PlainConvUNet" if kind == "CTNet" else kind, Workload(size, features_base=4))
    if kind == "CTNet":
        architecture = as_ctnet(architecture, size, TransformerOptions(embed_dim=12, depth=1, heads=2))
    torch.manual_seed(0)
    networks = [network_from_plan(architecture, 1, CLASSES, False) for _ in range(2)]
    one = torch.randn(2, 1, *size)
    expected = networks[0].eval()(one)
    branches = (PlanBranch(networks[0]), PlanBranch(networks[1]))
    assert torch.equal(branches[0].eval()(one), expected)
    network = CMFFNet(branches, [[0], [1]], CLASSES, aux=True)
    outputs = network(torch.randn(2, 2, *size))
    torch.stack(outputs).square().mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    heads = {key.rsplit(".", 2)[0] for key in network.state_dict() if ".seg_layers." in key}
    assert heads == {"branch_a.decoder.seg_layers", "branch_b.decoder.seg_layers", "fusion.seg_layers"}


def test_two_dimensions() -> None:
    architecture = architecture_of("PlainConvUNet", Workload((32, 32), features_base=4))
    first, second = (PlanBranch(network_from_plan(architecture, 1, CLASSES, False)) for _ in range(2))
    network = CMFFNet((first, second), [[0], [1]], CLASSES, dimensions=2)
    assert network(torch.randn(2, 2, 32, 32)).shape == (2, CLASSES, 32, 32)
    assert Discriminator(1, 2, 2, 3)(torch.randn(2, 1, 32, 32)).shape == (2, 1, 3, 3)
