"""What one training step of a trainer costs on its own plan and data: seconds, operations, bytes that ranks join.

The real trainer takes the steps, so that whatever it does in one is counted: teachers, feedback, discriminators.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from ctnet_nnunet import ranks
from ctnet_nnunet.files import write_text
from ctnet_nnunet.trainers.stock_hooks import end_workers

WARM_UP_STEPS = 2
RESULTS = "nnUNet_results"


@dataclass(frozen=True)
class StepCost:
    """Attributes:
    trainer, plans, patch: What was measured.
    ranks: Processes.
    batch: Samples of one step, over all ranks; of the labelled stream where there are two.
    seconds: Of each timed step, the slowest rank's, without loading its data.
    flops: Operations of one step, over all ranks.
    joined_bytes: What each rank gives to all-reduces of gradients in one step; 0 in one process, which joins nothing.
    parameters: Of the network that is saved.
    device, threads: What it ran on.
    """

    trainer: str
    plans: str
    patch: tuple[int, ...]
    ranks: int
    batch: int
    seconds: tuple[float, ...]
    flops: int
    joined_bytes: int
    parameters: int
    device: str
    threads: int

    def line(self) -> str:
        """For people."""
        middle, least, most = statistics.median(self.seconds), min(self.seconds), max(self.seconds)
        joined = f", {self.joined_bytes / 1e6:.1f} MB joined between them" if self.ranks > 1 else ""
        return (
            f"{self.trainer}, {self.plans}, {self.ranks} process{'es' if self.ranks > 1 else ''}, batch {self.batch}: "
            f"{middle:.3f} s a step ({least:.3f} to {most:.3f} in {len(self.seconds)}), {self.flops / 1e9:.1f} GFLOP"
            f"{joined}"
        )


class _Joined:
    """Counts what DistributedDataParallel gives to all-reduce, and all-reduces it as without a hook."""

    def __init__(self) -> None:
        self.bytes = 0

    def hook(self, state, bucket):  # type: ignore[no-untyped-def] # torch compares annotations, which are text here
        buffer = bucket.buffer()
        self.bytes += buffer.numel() * buffer.element_size()
        return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type] # there is a group


@contextmanager
def results_elsewhere() -> Iterator[None]:
    """Inside, nnUNet_results is a folder in it that is removed behind: trainers write as soon as they exist.

    All ranks call it.
    """
    results = os.environ[RESULTS]
    folder = ranks.from_first(str(Path(results) / f".ctnet_measured_{uuid.uuid4().hex}"))
    os.environ[RESULTS] = folder
    try:
        yield
    finally:
        os.environ[RESULTS] = results
        if ranks.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def measure_step(trainer: Any, steps: int, out: Path | None) -> StepCost:
    """Take ``steps`` timed training steps and a counted one; all ranks call it.

    Nothing is validated, and no checkpoint is written.

    Args:
        trainer: Of ours or of stock's, constructed.
        steps: At least 1.
        out: JSON file for rank 0 to write, or None.
    """
    joined = _Joined()
    batches = _begun(trainer, steps + WARM_UP_STEPS + 1)
    for wrapped in [item for item in gc.get_objects() if isinstance(item, DistributedDataParallel)]:
        wrapped.register_comm_hook(None, joined.hook)
    taken = [_timed(trainer, batch) for batch in batches[:-1]][WARM_UP_STEPS:]
    before = joined.bytes
    with FlopCounterMode(display=False) as counter:
        _step(trainer, batches[-1])
    everyone = ranks.gathered_objects((taken, counter.get_total_flops(), int(trainer.batch_size)))
    cost = StepCost(
        trainer=trainer.__class__.__name__,
        plans=f"{trainer.plans_manager.plans_name} {trainer.configuration_name}",
        patch=tuple(int(size) for size in trainer.configuration_manager.patch_size),
        ranks=ranks.world_size(),
        batch=sum(samples for _, _, samples in everyone),
        seconds=tuple(max(step) for step in zip(*(seconds for seconds, _, _ in everyone), strict=True)),
        flops=sum(flops for _, flops, _ in everyone),
        joined_bytes=joined.bytes - before,
        parameters=sum(p.numel() for p in trainer.network.parameters()),
        device=torch.cuda.get_device_name() if trainer.device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
    )
    if ranks.rank() == 0:
        print(cost.line())
        if out is not None:
            write_text(out, json.dumps(asdict(cost), indent=1) + "\n")
    return cost


def _begun(trainer: Any, count: int) -> list[Any]:
    """A trainer in the middle of an epoch, and its next batches, loaded beforehand; its loaders are ended."""
    if not trainer.was_initialized:
        trainer.initialize()
    trainer.on_train_start()
    trainer.current_epoch = _dearest_epoch(trainer)
    trainer.on_train_epoch_start()
    batches = [next(trainer.dataloader_train) for _ in range(count)]
    end_workers(trainer.dataloader_train, trainer.dataloader_val)  # they would take the cores that are timed
    return batches


def _dearest_epoch(trainer: Any) -> int:
    """In the middle of those that cost most: a training may begin and end with phases that do less in a step."""
    costs = trainer.costs_of_epochs() if hasattr(trainer, "costs_of_epochs") else [1.0] * trainer.num_epochs
    dearest = [epoch for epoch, cost in enumerate(costs) if cost == max(costs)]
    return dearest[len(dearest) // 2]


def _timed(trainer: Any, batch: Any) -> float:
    if ranks.in_group():
        dist.barrier()
    started = time.perf_counter()
    _step(trainer, batch)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _step(trainer: Any, batch: Any) -> None:
    outputs = trainer.train_step(batch)
    if hasattr(trainer, "_epoch_outputs"):  # ours look closer at some steps of an epoch
        trainer._epoch_outputs.append(outputs)
