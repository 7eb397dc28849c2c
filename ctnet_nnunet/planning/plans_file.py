"""Writing a plans file over nothing that it should not replace."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_results

from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.planner import CTNetPlanner
from ctnet_nnunet.planning.stock_data import STOCK_PLANS


def refuse_name(name: str, file: Path) -> None:
    """Only our own plans files are written over; stock ones of the same name would lose their networks."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise PlanError(f"--name {name!r}: use letters, digits, - and _")
    foreign = name == STOCK_PLANS
    if file.is_file() and not foreign:
        try:
            foreign = load_json(str(file)).get("experiment_planner_used") != CTNetPlanner.__name__
        except ValueError as error:
            raise PlanError(f"{file}: no valid JSON ({error}); remove it, or choose another --name") from None
    if foreign:
        raise PlanError(f"--name {name}: that file is for plans of another planner; choose another name")


def refuse_change_under_models(file: Path, plans: dict[str, Any], force: bool) -> None:
    """Keep what other configurations an existing file has; refuse to change one that models were trained with."""
    if not file.is_file():
        return
    old = load_json(str(file))
    for name, values in old["configurations"].items():
        new = plans["configurations"].setdefault(name, values)
        unchanged = json.dumps(new, sort_keys=True) == json.dumps(values, sort_keys=True)
        if unchanged or force or not nnUNet_results.is_set():
            continue
        results = Path(str(nnUNet_results)) / plans["dataset_name"]
        if found := sorted(results.glob(f"*__{file.stem}__{name}/fold_*/checkpoint_*.pth")):
            raise PlanError(
                f"{file}: {found[0].parent} was trained with another {name} of this name; choose --name, or --force"
            )
