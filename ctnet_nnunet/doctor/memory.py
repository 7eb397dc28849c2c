"""Memory that a process may still take: what the machine has, cut to what its control groups allow (containers)."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
MEMBERSHIP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
# Limit, usage and the part of the usage that the kernel gives back on demand: version 2, version 1.
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes() -> int | None:
    """Bytes that may still be allocated without swapping; None where the system does not tell (not Linux)."""
    machine = _machine_bytes()
    if machine is None:
        return None
    return min([machine, *_group_bytes()])


def _machine_bytes() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    # "MemAvailable:   24141840 kB"
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _group_bytes() -> list[int]:
    """What each control group from ours up to the root leaves free: a parent's limit binds its children."""
    free = []
    for folder, root, names in _groups():
        while True:
            left = _left_in(folder, names)
            if left is not None:
                free.append(left)
            if folder == root:
                break
            folder = folder.parent
    return free


def _groups() -> list[tuple[Path, Path, tuple[str, str, str]]]:
    """Our memory groups as (folder, root of the hierarchy, file names)."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            groups.append((CGROUPS / path.lstrip("/"), CGROUPS, V2))
        elif "memory" in controllers.split(","):
            groups.append((CGROUPS / "memory" / path.lstrip("/"), CGROUPS / "memory", V1))
    return groups


def _left_in(folder: Path, names: tuple[str, str, str]) -> int | None:
    limit_name, usage_name, reclaimable_name = names
    try:
        limit = int((folder / limit_name).read_text())
        usage = int((folder / usage_name).read_text())
    except (OSError, ValueError):
        return None  # no such group seen from inside the container, or "max": no limit
    return max(0, limit - usage + _reclaimable(folder, reclaimable_name))


def _reclaimable(folder: Path, name: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
