"""Which software on which machine: what a reader needs to judge and to repeat a run. No names of people or hosts."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from ctnet_nnunet.cores import usable_cores

PACKAGES = ("ctnet_nnunet", "nnunetv2", "torch", "numpy", "SimpleITK", "surface-distance")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def machine() -> dict[str, str]:
    """Processor, usable cores, memory, operating system, and GPU if PyTorch sees one."""
    found = {
        "processor": _processor(),
        "cores": f"{usable_cores()} usable",
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
    }
    import torch

    found["GPU"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() == "model name":
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return "unknown"
    return f"{size / 2**30:.1f} GiB"
