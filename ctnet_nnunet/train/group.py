"""The process group that torchrun describes in its environment, nccl on GPUs and gloo on the CPU."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ctnet_nnunet.cores import compute_threads, usable_cores
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.train.meeting import name_of_attempt
from ctnet_nnunet.trainers.ddp import rank_device

# As long as rank 0 may unpack a dataset; torchrun ends the others of a process that has died long before.
TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Launch:
    """What torchrun says of this process; a process that it has not started is a world of its own.

    Attributes:
        rank, world: Over all machines.
        local_rank, local_world: On this machine.
        restarts: How often torchrun has started the processes anew because one had failed.
        by_torchrun: Whether it has started them at all.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    restarts: int = 0
    by_torchrun: bool = False

    @staticmethod
    def from_environment() -> Launch:
        """Read torchrun's variables."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return Launch()

        def number(name: str) -> int:
            return int(os.environ[name])

        return Launch(
            number("RANK"), number("WORLD_SIZE"), number("LOCAL_RANK"), number("LOCAL_WORLD_SIZE"),
            number("TORCHELASTIC_RESTART_COUNT"), by_torchrun=True,
        )  # fmt: skip


@contextmanager
def process_group(launch: Launch, device: torch.device) -> Iterator[torch.device]:
    """Join the others, if there are any; gives the device of this process.

    Raises:
        SetupError: There are more processes than GPUs on this machine, or the kind of device takes one process alone.
    """
    _check_devices(launch, device)
    _settle_threads(launch, device)
    if launch.world == 1:
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(launch.local_rank)
    store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store = dist.PrefixStore(name_of_attempt(store, rank, world), store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    yield rank_device(device)
    # Not behind an error: the others may be in a collective, and torchrun ends them.
    dist.destroy_process_group()


def _settle_threads(launch: Launch, device: torch.device) -> None:
    """As nnUNetv2_train does; on the CPU the processes of a machine share its cores."""
    if device.type == "cpu":
        # torchrun sets OMP_NUM_THREADS to 1 where it starts several, which leaves cores without work.
        several = launch.local_world > 1
        torch.set_num_threads(max(1, usable_cores() // launch.local_world) if several else compute_threads())
    elif device.type == "cuda":
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)


def _check_devices(launch: Launch, device: torch.device) -> None:
    host = socket.gethostname()
    if device.type == "mps" and launch.world > 1:
        raise SetupError("-device mps: torch has no process group for it; start one process")
    if device.type != "cuda":
        return
    there = torch.cuda.device_count()
    if launch.local_world > there:
        if launch.local_rank != there:  # one process a machine says so
            raise SystemExit(SetupError.exit_status)
        raise SetupError(
            f"{host}: {launch.local_world} processes, but torch sees {there} GPUs there; give --nproc-per-node {there}"
            if there
            else f"{host}: -device cuda: torch sees no GPU there; run with -device cpu, or see `ctnet doctor`"
        )
