"""The loss of the fusion against a naive one, and on what crops are like."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctnet_nnunet.architectures.cross_modality import CMFFNet, PaperBranch, initialise
from ctnet_nnunet.cross_modality.cmff import SMOOTH, MeanOverOutputs, PaperDice


def one_hot_logits(labels: Tensor, classes: int) -> Tensor:
    return 100.0 * nn.functional.one_hot(labels[:, 0], classes).movedim(-1, 1).float()


def naive(probabilities: Tensor, truth: Tensor) -> float:
    values = []
    for p_sample, t_sample in zip(probabilities, truth, strict=True):
        for p, t in zip(p_sample.flatten(1), t_sample.flatten(1), strict=True):
            both = sum(float(x) * float(y) for x, y in zip(p, t, strict=True))
            each = sum(float(x) ** 2 + float(y) ** 2 for x, y in zip(p, t, strict=True))
            values.append((2 * both + SMOOTH) / (each + SMOOTH))
    return 1 - sum(values) / len(values)


def test_against_a_loop_over_voxels() -> None:
    logits, labels = torch.randn(2, 3, 3, 3, 3), torch.randint(3, (2, 1, 3, 3, 3))
    truth = nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1)[:, 1:]
    assert float(PaperDice()(logits, labels)) == pytest.approx(naive(logits.softmax(1)[:, 1:], truth), abs=1e-5)
    regions = torch.randint(2, (2, 3, 3, 3, 3))
    assert float(PaperDice(regions=True)(logits, regions)) == pytest.approx(naive(logits.sigmoid(), regions), abs=1e-5)


def test_a_perfect_prediction_and_an_empty_class() -> None:
    labels = torch.randint(1, 4, (2, 1, 4, 4, 4))
    assert float(PaperDice()(one_hot_logits(labels, 4), labels)) == pytest.approx(0, abs=1e-6)
    labels[labels == 3] = 0  # a crop without the third class
    logits = torch.randn(2, 4, 4, 4, 4, requires_grad=True)
    loss = PaperDice()(logits, labels)
    loss.backward()
    assert torch.isfinite(loss) and logits.grad is not None and torch.isfinite(logits.grad).all()
    assert float(PaperDice()(one_hot_logits(labels, 4), labels)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_ignored_voxels_do_not_count(regions: bool) -> None:
    logits = torch.randn(1, 3, 4, 4, 4)
    target = torch.randint(2, (1, 4 if regions else 1, 4, 4, 4))
    if regions:
        target[:, -1] = 0
        target[:, -1, :2] = 1
    else:
        target[:, :, :2] = 9
    loss = PaperDice(regions, ignore_label=9)
    before = loss(logits, target)
    changed = logits.clone()
    changed[:, :, :2] += 5 * torch.randn(1, 3, 2, 4, 4)
    assert torch.equal(loss(changed, target), before)
    changed[:, :, 2:] += 1 + torch.randn(1, 3, 2, 4, 4)
    assert not torch.equal(loss(changed, target), before)


def test_the_mean_over_outputs() -> None:
    labels = torch.randint(3, (1, 1, 4, 4, 4))
    outputs = [torch.randn(1, 3, 4, 4, 4) for _ in range(3)]
    loss, single = MeanOverOutputs(PaperDice()), PaperDice()
    wanted = sum(single(output, labels) for output in outputs) / 3
    torch.testing.assert_close(loss(outputs, [labels]), wanted)
    assert torch.equal(loss(outputs[0], labels), single(outputs[0], labels))


def test_one_case_is_overfitted_and_the_fusion_is_no_worse_than_its_branches() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(1, 1, 16, 16, 32, dtype=torch.long)
    labels[..., 3:9, 3:9, 4:12], labels[..., 7:13, 7:13, 18:27] = 1, 2
    images = torch.cat([labels.float(), (labels > 0) + (labels == 1).float()], 1) + 0.3 * torch.randn(1, 2, 16, 16, 32)
    network = CMFFNet((PaperBranch(1, 3, 4), PaperBranch(1, 3, 4)), [[0], [1]], 3, aux=True)
    initialise(network)
    optimizer, single = torch.optim.Adam(network.parameters(), 1e-2), PaperDice()
    history = []
    for _ in range(50):
        losses = torch.stack([single(output, labels) for output in network(images)])
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        history.append(losses.detach())
    first, last = history[0], torch.stack(history[-5:]).mean(0)
    assert (last < first - 0.3).all(), (first, last)
    assert last[0] <= last[1:].min() + 0.02
