"""Would nnU-Net find our trainers: the variable, and each class really looked up in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from ctnet_nnunet.doctor.check import Check
from ctnet_nnunet.shim_path import SHIM_FOLDER, VARIABLE, folders_in, names_shim, trainer_names

REMEDY = 'eval "$(ctnet env)"   (fish: ctnet env | source; PowerShell: ctnet env | Invoke-Expression)'
TIMEOUT_SECONDS = 300
NOT_FOUND = "Could not find requested nnunet trainer"  # how nnU-Net's own message begins

# Runs where the user's training would: a new process with the same environment. nnU-Net's finder prints to stdout, so
# the answer goes to a stream of its own; one class that cannot be found must not hide the others.
SCRIPT = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
found = {}
for name in sys.argv[1:]:
    try:
        cls = find(name)
        found[name] = {"place": f"{cls.__module__}.{cls.__qualname__}"}
    except Exception as error:
        message = (str(error).splitlines() or ["no message"])[0]
        found[name] = {"error": f"{type(error).__name__}: {message}"}
json.dump(found, answers)
"""


def shim() -> list[Check]:
    """nnUNet_extTrainer must hold this installation's shim folder."""
    value = os.environ.get(VARIABLE)
    if not value:
        return [Check(VARIABLE, "not set", REMEDY)]
    if not any(names_shim(folder) for folder in folders_in(value)):
        return [Check(VARIABLE, f"{value} does not hold {SHIM_FOLDER}", REMEDY)]
    return [Check(VARIABLE, value)]


def _look_up(names: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def trainers() -> list[Check]:
    """Each trainer of the shim, found by nnU-Net's own finder under the present environment."""
    names = trainer_names()
    try:
        process = _look_up(names)
    except subprocess.TimeoutExpired:
        return [Check("trainers", f"no answer within {TIMEOUT_SECONDS} s", "run it again on a less busy machine")]
    if process.returncode != 0:
        return [Check("trainers", _last_line(process.stderr), "repair what it names, then run ctnet doctor again")]
    found: dict[str, dict[str, str]] = json.loads(process.stdout)
    return [_trainer(name, found[name]) for name in names]


def _trainer(name: str, answer: dict[str, str]) -> Check:
    error = answer.get("error", "")
    if NOT_FOUND in error:
        return Check(name, "nnU-Net does not find it", REMEDY)
    if error:
        return Check(name, error, "repair what it names: pip install --force-reinstall ctnet_nnunet")
    if not answer["place"].startswith("ctnet_nnunet."):
        return Check(name, f"another class is found first: {answer['place']}", f"take that one out of {VARIABLE}")
    return Check(name, answer["place"])
