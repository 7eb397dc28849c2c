"""Two gloo processes with half of each batch give the h, gradients and networks of one process with the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.benchmark.steps import Workload, architecture_of
from ctnet_nnunet.semi_supervised.labels import Recomputed, full_resolution, negative_log_likelihood
from ctnet_nnunet.semi_supervised.reciprocal import Losses, ReciprocalOptions, ReciprocalStep

SIZE, BATCH, CLASSES = (16, 16, 16), 4, 3
RATES = (0.5, 0.1)


def _networks() -> tuple[nn.Module, nn.Module]:
    """Two U-Nets of nnU-Net's whose lower segmentation heads get no gradient."""
    architecture = architecture_of("PlainConvUNet", Workload(SIZE, features_base=4))
    networks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        networks.append(network_from_plan(architecture, 1, CLASSES, False))
    return networks[0], networks[1]


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, BATCH, 1, *SIZE, generator=generator)
    return images[0], torch.randint(CLASSES, (BATCH, *SIZE), generator=generator), images[1]


def _loss(output: Any, labels: Tensor) -> Tensor:
    return negative_log_likelihood(full_resolution(output), labels)


def _two_iterations(student: nn.Module, teacher: nn.Module, options: ReciprocalOptions, share: slice) -> dict[str, Any]:
    optimizers = [
        torch.optim.SGD(net.parameters(), rate, momentum=0.9)
        for net, rate in zip((student, teacher), RATES, strict=True)
    ]
    losses = Losses(_loss, _loss, _loss)
    step = ReciprocalStep(student, teacher, *optimizers, losses, options, clip_norm=1.0)
    mine = [tensor[share] for tensor in _batch()]
    outputs = [step(mine[0], mine[1], mine[2], measure_feedback=measured) for measured in (False, True)]
    # Behind the second step, the teacher's gradients are still there.
    gradients = [p.grad.clone() for p in teacher.parameters() if p.grad is not None]
    parameters = [p.detach().clone() for net in (student, teacher) for p in net.parameters()]
    return {"outputs": outputs, "gradients": gradients, "parameters": parameters}


def _rank(rank: int, folder: str, options: ReciprocalOptions, recomputed: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    student, teacher = _networks()
    inner = Recomputed(teacher) if recomputed else teacher
    wrapped = [DistributedDataParallel(net, find_unused_parameters=True) for net in (student, inner)]
    half = slice(BATCH // 2 * rank, BATCH // 2 * (rank + 1))
    torch.save(_two_iterations(wrapped[0], wrapped[1], options, half), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("options", "recomputed"),
    [
        (ReciprocalOptions(), False),
        (ReciprocalOptions(feedback="finite_difference", feedback_scale=10.0), False),
        (ReciprocalOptions(), True),
    ],
    ids=["gradient", "finite difference", "recomputed"],
)
def test_two_processes_are_one(options: ReciprocalOptions, recomputed: bool, tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path), options, recomputed), nprocs=2, join=True)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    single = _two_iterations(*_networks(), options, slice(None))

    for found in ranks:
        for mine, whole in zip(found["outputs"], single["outputs"], strict=True):
            assert mine["h"] == pytest.approx(whole["h"], rel=1e-3, abs=1e-7)
            assert mine["loss"] == pytest.approx(whole["loss"], rel=1e-5)
            assert mine["feedback_share"] == pytest.approx(whole["feedback_share"], rel=1e-2, nan_ok=True)
        assert any(float(gradient.abs().max()) > 1e-4 for gradient in found["gradients"])
        for name in ("gradients", "parameters"):
            for mine, whole in zip(found[name], single[name], strict=True):
                torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)
    assert single["outputs"][0]["h"] != 0.0
    for mine, other in zip(ranks[0]["parameters"], ranks[1]["parameters"], strict=True):
        assert torch.equal(mine, other)
