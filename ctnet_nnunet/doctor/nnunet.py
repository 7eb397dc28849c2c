"""Is the right nnU-Net there: its version and place, the command that the shell would run, its three folders."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from ctnet_nnunet.doctor.check import Check
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.nnunet_version import installed_nnunet_version, require_supported_nnunet

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TRAIN_COMMAND = "nnUNetv2_train"


def version() -> list[Check]:
    """The version in the metadata and the folder that ``import nnunetv2`` would take it from."""
    spec = importlib.util.find_spec("nnunetv2")
    place = str(Path(spec.origin).parent) if spec is not None and spec.origin else "nowhere on sys.path"
    found = f"{installed_nnunet_version() or 'not installed'} in {place}"
    try:
        require_supported_nnunet()
    except SetupError as error:
        return [Check("nnunetv2", found, str(error).split("; ", 1)[-1])]
    if spec is None:
        return [Check("nnunetv2", found, "reinstall it: python -m pip install --force-reinstall --no-deps nnunetv2")]
    return [Check("nnunetv2", found)]


def script_folders() -> list[Path]:
    """Where this Python's environment keeps its commands (a ``pip install --user`` has a place of its own)."""
    schemes = ("", f"{os.name}_user")
    folders = [sysconfig.get_path("scripts", scheme) if scheme else sysconfig.get_path("scripts") for scheme in schemes]
    return [Path(folder).resolve() for folder in folders if folder]


def train_command() -> list[Check]:
    """The first ``nnUNetv2_train`` on PATH must belong to the Python that holds this package."""
    command = shutil.which(TRAIN_COMMAND)
    ours = Path(sysconfig.get_path("scripts"))
    remedy = f"put {ours} first on PATH: activate the environment of {sys.executable}"
    if command is None:
        return [Check(TRAIN_COMMAND, "not on PATH", remedy)]
    if Path(command).parent.resolve() not in script_folders():
        return [Check(TRAIN_COMMAND, f"{command} belongs to another Python environment", remedy)]
    return [Check(TRAIN_COMMAND, command)]


def _can_write(folder: Path) -> bool:
    # Trying it is the only answer that also knows read-only mounts, quotas and the superuser.
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _folder(variable: str) -> Check:
    value = os.environ.get(variable)
    if not value:
        return Check(variable, "not set", f"export {variable}=<a folder with space for it>")
    folder = Path(value)
    if not folder.is_dir():
        found = "is no folder" if folder.exists() else "does not exist"
        return Check(variable, f"{value} {found}", f"mkdir -p '{value}', or set {variable} to another folder")
    if not _can_write(folder):
        return Check(variable, f"{value} cannot be written", f"allow writing there, or set {variable} elsewhere")
    return Check(variable, value)


def folders() -> list[Check]:
    """nnU-Net's three folders: set, there, writable."""
    return [_folder(variable) for variable in FOLDERS]
