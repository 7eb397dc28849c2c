"""A results folder for runs that only measure: nnU-Net's trainers write into theirs as soon as they exist."""

from __future__ import annotations

import atexit
import os
import shutil
from pathlib import Path

RESULTS = "nnUNet_results"


def divert_results() -> None:
    """Let nnUNet_results be a folder inside of it, which all ranks share and rank 0 removes at its end.

    To be called before nnU-Net is imported, which reads the variable once.
    """
    results = os.environ.get(RESULTS)
    if not results:
        return  # said by name later
    run = os.environ.get("TORCHELASTIC_RUN_ID", str(os.getpid()))
    folder = Path(results) / f".ctnet_measured_{run}"
    os.environ[RESULTS] = str(folder)
    if os.environ.get("RANK", "0") == "0":
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
