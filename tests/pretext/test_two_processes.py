"""Two gloo processes with half a batch each give the gradients of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.benchmark.steps import Workload, architecture_of
from ctnet_nnunet.pretext import PRETEXTS
from ctnet_nnunet.pretext.base import PretextContext, PretextModel, build_pretext

SIZE = (16, 16, 16)


def _model() -> PretextModel:
    torch.manual_seed(0)
    workload = Workload(SIZE, features_base=4)
    network = network_from_plan(architecture_of("CTNet-s", workload), 1, 2, True)
    # Stochastic depth draws per process, so it is off for this comparison.
    model = build_pretext(
        PRETEXTS, network, PretextContext(SIZE, SIZE, (1.0, 1.0, 1.0), 0, 1), {"rotation": 1, "masked_features": 1}, {}
    )
    for module in model.modules():
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    return model


def _prepared(model: PretextModel) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(4, 1, *SIZE, generator=generator)
    views = {"augmented": image, "inside": image, "usable": torch.ones(4, dtype=torch.bool)}
    return model.prepare(views, generator)


def _gradients(model: PretextModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = _model()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    half = slice(2 * rank, 2 * rank + 2)
    mine: dict[str, Any] = {
        task: {name: value / 2 if name == "count" else value[half] for name, value in tensors.items()}
        for task, tensors in _prepared(model).items()
    }
    wrapped(mine)["loss"].backward()
    if rank == 0:
        torch.save(_gradients(model), Path(folder) / "gradients.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2, join=True)
    distributed = torch.load(tmp_path / "gradients.pt", weights_only=True)

    model = _model()
    model(_prepared(model))["loss"].backward()
    single = _gradients(model)

    assert set(single) <= set(distributed)
    assert any(float(gradient.abs().max()) > 0 for gradient in single.values())
    for name, gradient in single.items():
        torch.testing.assert_close(distributed[name], gradient, rtol=1e-4, atol=1e-6)
