"""Can this machine train: PyTorch and its device, memory, disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ctnet_nnunet.doctor.check import Check
from ctnet_nnunet.doctor.memory import available_bytes
from ctnet_nnunet.doctor.nnunet import FOLDERS

GIB = 1024**3
# One 3d training with nnU-Net's data workers stays below this on small plans; large plans want several times as much.
LEAST_MEMORY = 4 * GIB
# Preprocessed cases and checkpoints of a small data set; a full disk in mid-training is what this warns of.
LEAST_DISK = 5 * GIB


def torch_device() -> list[Check]:
    """PyTorch's version, its GPU, and whether that computes in bf16; a CPU alone is slow but no fault."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Check("torch", f"cannot be imported: {error}", "python -m pip install --force-reinstall torch")]
    if torch.cuda.is_available():
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16 (fp16 is used)"
        memory = torch.cuda.get_device_properties(0).total_memory / GIB
        return [Check("torch", f"{torch.__version__}, {torch.cuda.get_device_name(0)} {memory:.0f} GiB, {bf16}")]
    if torch.version.cuda is None and Path("/proc/driver/nvidia/version").exists():
        remedy = "install a torch built for CUDA (https://pytorch.org/get-started)"
        return [Check("torch", f"{torch.__version__} without CUDA although an NVIDIA driver is loaded", remedy)]
    return [Check("torch", f"{torch.__version__}, no GPU: add -device cpu to nnU-Net's commands")]


def memory(least: int = LEAST_MEMORY) -> list[Check]:
    """Free memory, as far as this process's container allows it.

    Args:
        least: bytes below which training is likely to be killed.
    """
    free = available_bytes()
    if free is None:
        return [Check("memory", "this system does not tell how much is free")]
    found = f"{free / GIB:.1f} GiB free"
    if free < least:
        return [Check("memory", found, f"close other programs or allow at least {least / GIB:.0f} GiB")]
    return [Check("memory", found)]


def disk(least: int = LEAST_DISK) -> list[Check]:
    """Free space below each of nnU-Net's folders that exists.

    Args:
        least: bytes below which a training is likely to fill the disk.
    """
    checks = []
    for variable in FOLDERS:
        folder = os.environ.get(variable, "")
        if not Path(folder or os.devnull).is_dir():
            continue  # the folder's own line says what to do
        free = shutil.disk_usage(folder).free
        remedy = f"free at least {least / GIB:.0f} GiB, or set {variable} to another disk" if free < least else ""
        checks.append(Check(f"disk of {variable}", f"{free / GIB:.1f} GiB free", remedy))
    return checks
