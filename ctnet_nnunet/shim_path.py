"""Where nnU-Net must look for our trainers, and the value of ``nnUNet_extTrainer`` that makes it look there."""

from __future__ import annotations

import ast
import os
from pathlib import Path

from ctnet_nnunet.errors import SetupError

VARIABLE = "nnUNet_extTrainer"
SHIM_FOLDER = Path(__file__).resolve().parent / "nnunet_shim"
SHIM_MODULE = SHIM_FOLDER / "ctnet_trainers.py"


def trainer_names() -> list[str]:
    """Names that the shim offers to ``-tr``, read from its ``__all__`` without importing it (that takes seconds)."""
    for node in ast.parse(SHIM_MODULE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    raise SetupError(f"{SHIM_MODULE} has no __all__; reinstall ctnet_nnunet")


def folders_in(value: str | None) -> list[str]:
    """The folders of a pathsep list, without empty entries."""
    return [folder for folder in (value or "").split(os.pathsep) if folder.strip()]


def names_shim(folder: str) -> bool:
    """True when ``folder`` is this installation's shim, also through links."""
    return os.path.realpath(folder) == os.path.realpath(SHIM_FOLDER)


def _is_stale_shim(folder: str) -> bool:
    # A shim of another installation would hand out that one's list of trainers: the last environment used wins.
    return Path(folder).parts[-2:] == SHIM_FOLDER.parts[-2:] and not names_shim(folder)


def with_shim(value: str | None) -> str:
    """``value`` with our shim in it: other folders keep their order, nothing twice, no shim of another installation.

    Args:
        value: the present value of :data:`VARIABLE`, or None.

    Raises:
        SetupError: our folder's path holds the list separator, which such a list cannot express.
    """
    if os.pathsep in str(SHIM_FOLDER):
        raise SetupError(
            f"the path {SHIM_FOLDER} holds {os.pathsep!r}, which separates the folders of {VARIABLE}; "
            "install ctnet_nnunet in a folder without it"
        )
    kept = [folder for folder in dict.fromkeys(folders_in(value)) if not _is_stale_shim(folder)]
    if not any(names_shim(folder) for folder in kept):
        kept.append(str(SHIM_FOLDER))
    return os.pathsep.join(kept)
