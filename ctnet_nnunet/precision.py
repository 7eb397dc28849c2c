"""bf16 autocast where the device computes in it, float32 elsewhere."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

CPU_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def autocast(device: torch.device, enabled: bool = True) -> torch.autocast:
    """An autocast context: bf16 where the device has it, fp16 on older CUDA devices, off elsewhere."""
    if device.type == "cuda" and not bfloat16_supported(device):
        return torch.autocast("cuda", torch.float16, enabled=enabled)
    on = enabled and device.type in ("cuda", "cpu") and bfloat16_supported(device)
    return torch.autocast(device.type if device.type in ("cuda", "cpu") else "cpu", torch.bfloat16, enabled=on)


def bfloat16_supported(device: torch.device) -> bool:
    """Whether the device has bf16 arithmetic of its own (emulation is slower than float32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _cpu_has_bfloat16()


@lru_cache(maxsize=1)
def _cpu_has_bfloat16() -> bool:
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        return False
    for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            return bool(CPU_BFLOAT16_FLAGS & set(line.split()))
    return False
