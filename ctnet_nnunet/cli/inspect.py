"""``ctnet inspect planes``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at what a pretraining sees and predicts.", no_args_is_help=True)


@app.callback()
def _inspect() -> None:
    pass


@app.command("planes")
def planes(
    dataset: Annotated[str, typer.Option("-d", help="Dataset id or name.")],
    out: Annotated[Path, typer.Option("-o", help="The picture (.png) or page (.html) to write.")],
    study: Annotated[str | None, typer.Option(help="A study of planes.json; its first by default.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A checkpoint of nnUNetTrainerImagingPlanes, to draw what it predicts.")
    ] = None,
    configuration: Annotated[str, typer.Option("-c", help="Configuration.")] = "2d",
    plans: Annotated[
        str, typer.Option("-p", help="Plans; those that the checkpoint was trained with.")
    ] = "nnUNetPlans",
) -> None:
    """Draw a study's host slices with the lines that its other planes cut, and those that a checkpoint predicts.

    With --checkpoint and without --study it also lists how far predicted lines are off in every study, the worst first:
    where the patient breathed differently between the series, lines are off by as much.
    """
    from ctnet_nnunet.nnunet_version import require_supported_nnunet

    require_supported_nnunet()
    from ctnet_nnunet.inspection.picture import write_picture
    from ctnet_nnunet.inspection.planes import line_offsets, open_dataset, show_study

    inspected = open_dataset(dataset, configuration, plans, checkpoint)
    shown = show_study(inspected, study)
    write_picture(shown, out)
    typer.echo(f"study {shown.name}: {len(shown.slices)} host slices, guests {', '.join(shown.guests)}")
    typer.echo(f"wrote {out}")
    if inspected.model is None or study is not None:
        return
    typer.echo("median distance of predicted lines to the true ones, mm")
    for name, offsets in line_offsets(inspected).items():
        pairs = zip(shown.guests, offsets, strict=True)
        typer.echo(f"  {name}: " + ", ".join(f"{guest} {offset:.1f}" for guest, offset in pairs))
