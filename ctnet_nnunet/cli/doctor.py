"""``ctnet doctor``: one line per check, ``ok`` or ``fix`` and what to do."""

from __future__ import annotations

import sys

import typer

from ctnet_nnunet.doctor.check import Check, run_checks


def _show(check: Check) -> None:
    if not sys.stdout.isatty():
        typer.echo(check.line())
        return
    from rich.console import Console
    from rich.text import Text

    line = Text(check.line())
    line.stylize("bold green" if check.ok else "bold red", 0, 3)
    # A wrapped line is still one line to copy from: the terminal folds it, rich must not.
    Console(soft_wrap=True, highlight=False).print(line)


def doctor() -> None:
    """Check nnU-Net, its folders, the look-up of our trainers, the device, memory and disk; 2 if something is amiss."""
    failed = 0
    for check in run_checks():
        _show(check)
        failed += not check.ok
    if failed:
        raise typer.Exit(2)
