"""What the processes (ranks) of one training tell each other; without a process group each function is that of one.

All of these but :func:`world_size` and :func:`rank` are collectives: every rank must call them, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def in_group() -> bool:
    """Whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Processes in the group."""
    return dist.get_world_size() if in_group() else 1


def rank() -> int:
    """Of this process, from 0, over all machines."""
    return dist.get_rank() if in_group() else 0


def summed(value: Tensor) -> Tensor:
    """The sum over ranks, without a gradient."""
    value = value.detach()
    if in_group():
        value = value.clone()
        dist.all_reduce(value)
    return value


def averaged(value: Tensor) -> Tensor:
    """The mean over ranks, without a gradient; gloo has no mean of its own."""
    return summed(value) / world_size()


def expected_count(counts: Tensor, samples: int) -> Tensor:
    """What a loss that is a mean over counted entries must divide its sum by, so that ranks together give one's loss.

    Each rank's loss weighs as much as its samples. If it divided by what it counted itself, entries of a rank with few
    of them would weigh more than others'.

    Args:
        counts: Entries counted here, one number for each such loss (L,).
        samples: Of this rank's batch.

    Returns:
        The mean count of a sample over all ranks, at least 1 in the whole batch, times ``samples``; (L,), float.
    """
    total = summed(torch.cat([counts.float().flatten(), counts.new_tensor([samples], dtype=torch.float32)]))
    return total[:-1].clamp(min=1) * samples / total[-1]


def gathered(images: Tensor) -> Tensor:
    """The batches (B, …) of all ranks in their order (ranks · B, …), without a gradient; B is everyone's."""
    if not in_group():
        return images.detach()
    images = images.detach().contiguous()
    everywhere = [torch.empty_like(images) for _ in range(world_size())]
    dist.all_gather(everywhere, images)
    return torch.cat(everywhere)


def own_part(whole: Tensor) -> Tensor:
    """This rank's part of what :func:`gathered` gave."""
    count = len(whole) // world_size()
    return whole[rank() * count : (rank() + 1) * count]


def gathered_objects(value: Any) -> list[Any]:
    """Everyone's picklable value, in the order of ranks."""
    if not in_group():
        return [value]
    everywhere: list[Any] = [None] * world_size()
    dist.all_gather_object(everywhere, value)
    return everywhere


def from_first(value: Any) -> Any:
    """Rank 0's picklable value."""
    if not in_group():
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def mean_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The mean over ranks of every number that a rank has measured; nan where none has."""
    if not in_group():
        return dict(metrics)
    everywhere = gathered_objects(dict(metrics))
    means = {}
    for name in dict.fromkeys(name for measured in everywhere for name in measured):
        values = [measured[name] for measured in everywhere if np.isfinite(measured.get(name, float("nan")))]
        means[name] = float(np.mean(values)) if values else float("nan")
    return means
