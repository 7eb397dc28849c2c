"""The facts that a look-up through nnUNet_extTrainer must hold, gathered in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# nnU-Net's finder prints; the facts go to a stream of their own.
SCRIPT = """
import importlib, json, os, pickle, sys
facts = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
import ctnet_nnunet
found = {"package": ctnet_nnunet.__file__}
for name in sys.argv[1:]:
    first, second = find(name), find(name)
    direct = getattr(importlib.import_module(first.__module__), name)
    found[name] = {
        "module": first.__module__,
        "same_at_second_look_up": first is second,
        "same_as_direct_import": first is direct,
        "same_after_pickle": pickle.loads(pickle.dumps(first)) is first,
        "left_in_sys_modules": "ctnet_trainers" in sys.modules,
    }
json.dump(found, facts)
"""


def look_up(names: list[str], shim_folder: Path, environ: dict[str, str] | None = None) -> dict[str, Any]:
    """Look every name up in a new process, from a folder that is not the repository.

    Raises:
        AssertionError: the process failed; its error output is the message.
    """
    env = {**os.environ, **(environ or {}), "nnUNet_extTrainer": str(shim_folder)}
    command = [sys.executable, "-c", SCRIPT, *names]
    process = subprocess.run(command, env=env, cwd=sys.prefix, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    facts: dict[str, Any] = json.loads(process.stdout)
    return facts
