"""The rows of reciprocal learning in `ctnet benchmark speed` measure a whole iteration of both networks."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.benchmark.reciprocal import RECIPROCAL, reciprocal_step
from ctnet_nnunet.benchmark.steps import SUBJECTS, Workload, _loss_and_targets, architecture_of, make_step
from ctnet_nnunet.precision import autocast

WORKLOAD = Workload((16, 16, 16), features_base=4)
CPU = torch.device("cpu")


def after_two_steps(subject: str) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of student and teacher, each before and behind."""
    torch.manual_seed(0)
    architecture = architecture_of(subject, WORKLOAD)
    student, teacher = (network_from_plan(architecture, 1, WORKLOAD.classes, True) for _ in range(2))
    image = torch.randn(2, 1, *WORKLOAD.patch_size)
    loss, targets = _loss_and_targets(student, image, WORKLOAD)
    before = [p.detach().clone() for net in (student, teacher) for p in net.parameters()]
    context = functools.partial(autocast, CPU, False)
    step = reciprocal_step(subject, student, teacher, image, loss, targets, context, False)
    step()
    step()
    return before, [p.detach().clone() for net in (student, teacher) for p in net.parameters()]


@pytest.mark.parametrize("subject", RECIPROCAL)
def test_both_networks_take_their_steps(subject: str) -> None:
    before, after = after_two_steps(subject)
    half = len(before) // 2
    for part in (slice(None, half), slice(half, None)):
        moved = [not torch.equal(a, b) for a, b in zip(before[part], after[part], strict=True)]
        assert sum(moved) > 0.8 * half  # all but the lower segmentation heads
    make_step(subject, WORKLOAD, CPU, compiled=False, mixed=False)()
    assert subject in SUBJECTS


def test_recomputing_changes_nothing_but_time_and_memory() -> None:
    plain = after_two_steps("reciprocal, finite difference")[1]
    again = after_two_steps("reciprocal, finite difference, teacher recomputed")[1]
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    other = after_two_steps("reciprocal, gradient")[1]
    assert any(not torch.equal(a, b) for a, b in zip(plain, other, strict=True))
