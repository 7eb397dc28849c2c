"""bf16 autocast where the device computes in it, float32 elsewhere."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def autocast(device: torch.device, enabled: bool = True) -> torch.autocast:
    """An autocast context: bf16 where the device has it, fp16 on older CUDA devices, off elsewhere."""
    if device.type == "cuda" and not bfloat16_supported(device):
        return torch.autocast("cuda", torch.float16, enabled=enabled)
    on = enabled and device.type in ("cuda", "cpu") and bfloat16_supported(device)
    return torch.autocast("cuda", torch.bfloat16, enabled=on) if device.type == "cuda" else _CPUAutocast(on)


class _CPUAutocast(torch.autocast):
    """bf16 on the CPU, but for the convolutions whose gradient would be wrong."""

    def __init__(self, enabled: bool) -> None:
        super().__init__("cpu", torch.bfloat16, enabled=enabled)
        self._shallow = _ShallowInFloat32() if enabled else None

    def __enter__(self) -> Any:
        if self._shallow is not None:
            self._shallow.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        result = super().__exit__(kind, error, trace)
        if self._shallow is not None:
            self._shallow.__exit__(kind, error, trace)
        return result


class _ShallowInFloat32(TorchFunctionMode):
    """3d convolutions over fewer slices than their kernel has, in float32.

    Of these oneDNN, in torch 2.11 on processors with AVX-512 bf16, leaves a part of the weights' bf16 gradient to what
    lay in memory before; output and the image's gradient are right. Inference has no gradient and is left alone.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv3d or not torch.is_grad_enabled() or args[0].shape[2] >= args[1].shape[2]:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            image, weight, *others = args
            return func(image.float(), weight, *others, **kwargs)


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
