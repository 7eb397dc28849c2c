"""A network inside DistributedDataParallel on the device of this process, GPU or CPU."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ctnet_nnunet.errors import PlanError


def rank_device(device: torch.device) -> torch.device:
    """The device of this process: ``cuda`` becomes the GPU of its number on this machine (torchrun's LOCAL_RANK)."""
    if device.type != "cuda":
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", dist.get_rank())))


def distributed(network: nn.Module, device: torch.device, has_unused: bool = False) -> DistributedDataParallel:
    """Wrap a network that lies on ``device``.

    Args:
        network: Bare or compiled.
        device: From :func:`rank_device`.
        has_unused: Some parameters get no gradient in some steps.

    Raises:
        PlanError: On the CPU, where torch cannot join the statistics of batch norm.
    """
    if device.type == "cpu" and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        raise PlanError(
            "this plan's network has batch norm, whose statistics torch joins over processes on GPUs alone; train it "
            "in one process, on GPUs, or with a plan that has instance norm"
        )
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, find_unused_parameters=has_unused)


def copy_from_first(network: nn.Module) -> None:
    """Give a network that is not wrapped as a whole the weights of rank 0's."""
    for tensor in (*network.parameters(), *network.buffers()):
        dist.broadcast(tensor.detach(), src=0)


@contextmanager
def stock_wraps_for(device: torch.device) -> Iterator[None]:
    """Inside, stock's ``initialize`` wraps for this device; it would take a GPU by the rank over all machines."""
    original = stock.DDP
    stock.DDP = functools.partial(_as_stock_calls_it, device)
    try:
        yield
    finally:
        stock.DDP = original


def _as_stock_calls_it(device: torch.device, network: nn.Module, device_ids: Any = None) -> DistributedDataParallel:
    return distributed(network, device)
