"""Two gloo processes with half of each batch end with the networks of one process with the whole, after two steps."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ctnet_nnunet.architectures.cross_modality import CMFFNet, PaperBranch
from ctnet_nnunet.cross_modality.cmft import CMFTOptions, CMFTStep, Discriminators, Translators

SIZE, BATCH = (16, 16, 32), 2


def _networks() -> tuple[Translators, Discriminators]:
    torch.manual_seed(0)
    network = CMFFNet((PaperBranch(1, 2, 2), PaperBranch(1, 2, 2)), [[0], [1]], 2)
    # Instance norms over the deepest two voxels amplify float32's rounding, which depends on the batch.
    return Translators(network).double(), Discriminators(1, 1, features=2, levels=3).double()


def _two_steps(translators: nn.Module, judges: nn.Module, bare_judges: nn.Module, share: slice) -> list[Tensor]:
    """The networks behind two steps of each, without a pool: what its slots hold depends on the process."""
    unit = CMFTStep(translators, bare_judges, judges, CMFTOptions(pool_size=0), torch.Generator())
    optimizers = [torch.optim.SGD(module.parameters(), 0.01) for module in (translators, judges)]
    a, b = torch.randn(2, BATCH, 1, *SIZE, generator=torch.Generator().manual_seed(1)).double()
    for _ in range(2):
        losses, made = unit.generators(a[share], b[share])
        optimizers[0].zero_grad()
        losses["loss"].backward()
        optimizers[0].step()
        judged = unit.judges(a[share], b[share], made)
        optimizers[1].zero_grad()
        judged["discriminators"].backward()
        optimizers[1].step()
    return [parameter.detach().clone() for module in (translators, judges) for parameter in module.parameters()]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    translators, judges = _networks()
    wrapped = DistributedDataParallel(translators, find_unused_parameters=True)
    judged = _two_steps(wrapped, DistributedDataParallel(judges), judges, slice(rank, rank + 1))
    torch.save(judged, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2, join=True)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    translators, judges = _networks()
    start = [parameter.detach().clone() for module in (translators, judges) for parameter in module.parameters()]
    whole = _two_steps(translators, judges, judges, slice(None))
    assert any(not torch.equal(before, after) for before, after in zip(start, whole, strict=True))
    for mine, other, single in zip(*ranks, whole, strict=True):
        assert torch.equal(mine, other)
        torch.testing.assert_close(mine, single, rtol=1e-4, atol=1e-5)
