"""How many cores this process may use: fewer than the machine has in a container, under SLURM or taskset."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that affinity and a container's quota leave to this process."""
    from joblib import cpu_count  # it brings numpy, for which `ctnet --help` shall not wait

    return int(cpu_count())


def compute_threads() -> int:
    """Threads for computation: OMP_NUM_THREADS where the user set it, else one a usable core."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else usable_cores()
