"""What several GPUs would give: the measured cost of a step against the rates of common links.

Data parallelism on n GPUs, each with the same number of samples (weak scaling). A ring all-reduce moves 2 (n − 1) / n
of the gradients' bytes over every GPU's link (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69(2):117-124, 2009).
DistributedDataParallel begins it while the backward pass still runs, which is two thirds of a step's operations; the
two bounds are: nothing of it is hidden, and as much as fits is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.errors import DataError

LINKS: Mapping[str, float] = {
    "NVLink 4 (H100), 450 GB/s": 450e9,
    "NVLink 3 (A100), 300 GB/s": 300e9,
    "InfiniBand NDR, 400 Gb/s": 50e9,
    "PCIe 4.0 ×16, 32 GB/s": 32e9,
    "InfiniBand HDR, 200 Gb/s": 25e9,
    "Ethernet, 100 Gb/s": 12.5e9,
    "Ethernet, 25 Gb/s": 3.125e9,
    "Ethernet, 10 Gb/s": 1.25e9,
    "Ethernet, 1 Gb/s": 0.125e9,
}
"""Nominal rate in one direction, in bytes per second, for each GPU."""
BACKWARD = 2 / 3
"""Share of a step's operations in which gradients become ready."""


@dataclass(frozen=True)
class Cost:
    """Of one trainer's step: operations of a sample, and bytes that each rank gives to all-reduces."""

    trainer: str
    plans: str
    flops: float
    joined_bytes: float


def read_cost(file: Path, patch: Sequence[int] = ()) -> Cost:
    """What ``ctnet_nnunet.train --measure-out`` wrote in a run of two or more ranks.

    Args:
        file: JSON.
        patch: Another patch of the same network, to which the operations grow with the voxels; empty for the measured.

    Raises:
        DataError: It is no such file, or of one process, which joins nothing; or the patch has other dimensions.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        measured = [int(size) for size in content["patch"]]
        flops = float(content["flops"]) / int(content["batch"])
        shown = "×".join(map(str, patch or measured))
        cost = Cost(
            str(content["trainer"]),
            f"{content['plans']}, patch {shown}",
            flops * math.prod(patch or measured) / math.prod(measured),
            float(content["joined_bytes"]),
        )
        processes = int(content["ranks"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise DataError(f"{file}: is no file of --measure-out ({error!r}); measure again") from None
    if processes < 2:
        raise DataError(f"{file}: was measured in one process, which joins no gradients; start two with torchrun")
    if patch and len(patch) != len(measured):
        raise DataError(f"--patch {list(patch)}: {file} was measured with {len(measured)} axes; give as many sizes")
    return cost


def efficiency(cost: Cost, samples: int, gpus: int, rate: float, link: float) -> tuple[float, float]:
    """Speed on ``gpus`` over ``gpus`` times that on one, without and with overlap of computation and communication.

    Args:
        samples: Of each GPU.
        rate: Operations per second that a GPU sustains.
        link: Bytes per second.
    """
    computing = cost.flops * samples / rate
    joining = 2 * (gpus - 1) / gpus * cost.joined_bytes / link
    shown = max(0.0, joining - BACKWARD * computing)
    return computing / (computing + joining), computing / (computing + shown)


def least_samples(cost: Cost, gpus: int, rate: float, link: float, wanted: float) -> int:
    """Samples of a GPU below which the efficiency without overlap is under ``wanted`` (0..1)."""
    joining = 2 * (gpus - 1) / gpus * cost.joined_bytes / link
    needed = joining * wanted / (1 - wanted) * rate / cost.flops
    return max(1, -(-int(needed * 1e9) // 10**9))


def tables(costs: Sequence[Cost], samples: int, gpus: Sequence[int], rate: float, wanted: float) -> str:
    """For each cost a Markdown table: links against numbers of GPUs, efficiencies in percent, least samples."""
    parts = []
    for cost in costs:
        lines = [
            f"{cost.trainer}, {cost.plans}: {cost.flops / 1e9:.1f} GFLOP a sample, {cost.joined_bytes / 1e6:.1f} MB "
            f"joined a step; {samples} samples a GPU",
            "",
            f"| link of each GPU | {' | '.join(map(str, gpus))} GPUs | samples a GPU for {wanted:.0%} on {gpus[-1]} |",
            "|---" * (len(gpus) + 2) + "|",
        ]
        for name, link in LINKS.items():
            bounds = [efficiency(cost, samples, count, rate, link) for count in gpus]
            cells = [_range(*pair) for pair in bounds]
            lines.append(f"| {name} | {' | '.join(cells)} | {least_samples(cost, gpus[-1], rate, link, wanted)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _range(low: float, high: float) -> str:
    first, last = f"{100 * low:.0f}", f"{100 * high:.0f}"
    return f"{first} %" if first == last else f"{first} to {last} %"
