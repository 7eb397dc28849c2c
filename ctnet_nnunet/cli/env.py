"""``ctnet env``: print the line that lets nnU-Net's commands find our trainers, in the words of the user's shell."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.shim_path import VARIABLE, with_shim


def _posix(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}"


def _fish(name: str, value: str) -> str:
    # Inside fish's single quotes only the backslash and the quote itself are special.
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {name} '{escaped}'"


def _powershell(name: str, value: str) -> str:
    # PowerShell takes the typographic quotes for quotes too; each is escaped by doubling it.
    escaped = re.sub("(['\u2018\u2019\u201a\u201b])", r"\1\1", value)
    return f"$env:{name} = '{escaped}'"


SHELLS: dict[str, Callable[[str, str], str]] = {
    "bash": _posix,
    "zsh": _posix,
    "fish": _fish,
    "powershell": _powershell,
}
ALIASES = {"sh": "bash", "dash": "bash", "ksh": "bash", "ash": "bash", "pwsh": "powershell"}


def _running_shell() -> str:
    """Name of the shell that called us: the nearest shell among our parents, else the login shell ``$SHELL``."""
    import shellingham

    try:
        return str(shellingham.detect_shell()[0])
    except (shellingham.ShellDetectionFailure, OSError):
        return Path(os.environ.get("SHELL", "")).stem


def export_line(shell: str | None, value: str) -> str:
    """The line that sets :data:`VARIABLE` to ``value``.

    Args:
        shell: a name of :data:`SHELLS` or an alias; None asks the system and falls back to bash.

    Raises:
        SetupError: ``shell`` was named but is not known.
    """
    name = _running_shell() if shell is None else shell.lower()
    name = ALIASES.get(name, name)
    if name not in SHELLS and shell is not None:
        raise SetupError(f"unknown shell '{shell}' in --shell; choose one of {', '.join(SHELLS)}")
    return SHELLS.get(name, _posix)(VARIABLE, value)


def env(
    shell: Annotated[str | None, typer.Option(help="bash, zsh, fish or powershell; default: the calling one.")] = None,
) -> None:
    """Print the line that makes nnU-Net find our trainers: eval "$(ctnet env)".

    fish: ctnet env | source. PowerShell: ctnet env | Invoke-Expression.
    """
    typer.echo(export_line(shell, with_shim(os.environ.get(VARIABLE))))
