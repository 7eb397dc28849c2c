"""``ctnet status``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctnet_nnunet.errors import SetupError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ctnet_nnunet.cluster.status import Status

WIDE = 2000
COLOURS = {"finished": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", "unknown": "yellow"}


def status(
    dataset: Annotated[str | None, typer.Argument(metavar="[ID]", help="Dataset id or name; all by default.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep the table up to date until nothing is at work.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks with --watch.", min=1)] = 15.0,
) -> None:
    """How far the cross-validations are: job, epoch, remaining time, Dice, and why something failed."""
    from ctnet_nnunet.cluster.status import chain_status

    folders = _folders(dataset)
    statuses = [chain_status(folder) for folder in folders]
    if not watch:
        _print(_tables(statuses))
    else:
        from rich.live import Live

        with Live(_tables(statuses), auto_refresh=False) as live:
            while any(item.at_work for item in statuses):
                time.sleep(every)
                statuses = [chain_status(folder) for folder in folders]
                live.update(_tables(statuses), refresh=True)
    if any(item.failed for item in statuses):
        raise typer.Exit(1)


def _folders(dataset: str | None) -> list[Path]:
    from ctnet_nnunet.cluster.chain import find_chains
    from ctnet_nnunet.unlabeled.target import environment_folder

    results = environment_folder("nnUNet_results")
    pattern = "*" if dataset is None else dataset
    if dataset is not None and dataset.isdecimal():
        pattern = f"Dataset{int(dataset):03d}_*"
    folders = find_chains(results, pattern)
    if not folders:
        which = f" of {dataset}" if dataset else ""
        raise SetupError(f"{results}: no cross-validation{which}; start one with ctnet crossval")
    return folders


def _tables(statuses: list[Status]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables = []
    for item in statuses:
        table = Table(title=Text(item.title), title_justify="left", box=None, pad_edge=False)
        for column in ("step", "job", "state", "epoch", "left", "Dice"):
            table.add_column(column, no_wrap=True)
        table.add_column("note", overflow="fold")
        for row in item.rows:
            state = Text(row.state, style=COLOURS.get(row.state, ""))
            table.add_row(Text(row.title), row.job, state, row.epoch, row.left, row.dice, Text(row.note))
        tables.append(table)
    return Group(*tables)


def _print(tables: RenderableType) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)  # what reads a pipe takes a row for a line
    console.print(tables)
