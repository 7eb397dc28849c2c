"""``ctnet transfer``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ctnet_nnunet.weight_transfer import Transfer

SHOWN_ROWS = 20


def transfer(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of nnU-Net, of this package or of nnssl.")],
    dataset: Annotated[str, typer.Option("-d", help="Dataset id or name to fine-tune on.")],
    output: Annotated[Path, typer.Option("-o", help="The file to write, for -pretrained_weights.")],
    configuration: Annotated[str, typer.Option("-c", help="Configuration.")],
    plans: Annotated[str, typer.Option("-p", help="Plans of that dataset.")] = "nnUNetPlans",
    trainer: Annotated[str, typer.Option("-tr", help="Who loads it: nnUNetTrainerCTNet or nnUNetTrainer.")] = (
        "nnUNetTrainerCTNet"
    ),
    min_share: Annotated[float, typer.Option(help="Least share of parameters that must fit.", min=0, max=1)] = 0.5,
    force: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Make a checkpoint of other plans, channels or dimensions load under this plan; print what fits."""
    from ctnet_nnunet.nnunet_version import require_supported_nnunet

    require_supported_nnunet()
    from ctnet_nnunet.planning.transfer import TooLittleFitsError, transfer_checkpoint

    try:
        result = transfer_checkpoint(checkpoint, dataset, plans, configuration, output, trainer, min_share, force)
    except TooLittleFitsError as error:
        _print(error.result)
        raise
    _print(result)
    typer.echo(f"wrote {output}")


def _print(result: Transfer) -> None:
    from ctnet_nnunet.checkpoints import HEADS

    typer.echo(f"{'':8}  {'tensors':>7}  % of parameters (heads left out, they stay new)")
    for action in ("loaded", "adapted", "skipped"):
        typer.echo(f"{action:8}  {result.tensors(action):7d}  {result.share(action):6.1%}")
    for action in ("adapted", "skipped"):
        rows = [row for row in result.rows if row.action == action and HEADS not in row.key]
        for row in rows[:SHOWN_ROWS]:
            found = "-" if row.found is None else "x".join(map(str, row.found))
            typer.echo(f"{action}: {row.key}: wanted {'x'.join(map(str, row.wanted))}, found {found} ({row.note})")
        if len(rows) > SHOWN_ROWS:
            typer.echo(f"{action}: … and {len(rows) - SHOWN_ROWS} more")
