"""Seconds and peak memory of training steps.

Time: all subjects in turn, several rounds, so that a ratio compares steps taken within the same minute. Memory: on
CUDA the allocator's peak; on the CPU the growth of a fresh process's peak resident set over what it held before the
network was built.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ctnet_nnunet.benchmark.steps import Workload, make_step
from ctnet_nnunet.errors import SetupError

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Timing:
    """Median seconds per iteration of each round."""

    seconds: list[float]

    def ratio(self, reference: Timing) -> tuple[float, float, float]:
        """Median, least and greatest ratio to the reference, round by round."""
        ratios = [mine / theirs for mine, theirs in zip(self.seconds, reference.seconds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def time_steps(
    subjects: Sequence[str],
    workload: Workload,
    device: torch.device,
    rounds: int,
    steps: int,
    compiled: bool,
    progress: Callable[[str], None],
) -> dict[str, Timing]:
    """Seconds per iteration of every subject in every round."""
    seconds: dict[str, list[float]] = {subject: [] for subject in subjects}
    for index in range(rounds):
        for subject in subjects:
            step = make_step(subject, workload, device, compiled)
            for _ in range(WARM_UP_STEPS):
                step()
            taken = [_timed(step, device) for _ in range(steps)]
            seconds[subject].append(statistics.median(taken))
            progress(f"round {index + 1}/{rounds}: {subject} {seconds[subject][-1]:.4f} s/iteration")
            del step
            _release(device)
    return {subject: Timing(values) for subject, values in seconds.items()}


def _timed(step: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.compiler.reset()
        torch.cuda.empty_cache()


def peak_memory(subject: str, workload: Workload, device: torch.device, compiled: bool, mixed: bool = True) -> int:
    """Peak bytes of a training step: parameters, gradients, optimiser states, activations."""
    if device.type == "cuda":
        _release(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step = make_step(subject, workload, device, compiled, mixed)
        for _ in range(WARM_UP_STEPS):
            step()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del step
        _release(device)
        return int(peak)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_on_cpu, (subject, workload, mixed, torch.get_num_threads()))


def _peak_on_cpu(subject: str, workload: Workload, mixed: bool, threads: int) -> int:
    torch.set_num_threads(threads)
    small = Workload((16,) * len(workload.patch_size), workload.batch_size, 4, workload.channels, workload.classes)
    make_step("PlainConvUNet", small, torch.device("cpu"), False, mixed)()  # code and thread pools, once
    before = _status_bytes("VmRSS")
    step = make_step(subject, workload, torch.device("cpu"), False, mixed)
    for _ in range(WARM_UP_STEPS):
        step()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    """A field of this process's memory from the kernel; its peak, unlike getrusage's, is not the parent's."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise SetupError(f"/proc/self/status has no {field}: memory can be measured on Linux only")


def machine(device: torch.device) -> str:
    """Processor or GPU, threads and torch version, for the head of a table."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write_json(file: Path, content: dict[str, object]) -> None:
    """Keep the raw figures beside the printed table."""
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
