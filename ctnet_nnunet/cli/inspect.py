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
    """Draw a study's host slices with the lines that its other planes cut, and those that a checkpoint predicts."""
    from ctnet_nnunet.nnunet_version import require_supported_nnunet

    require_supported_nnunet()
    from ctnet_nnunet.inspection.picture import write_picture
    from ctnet_nnunet.inspection.planes import show_study

    shown = show_study(dataset, configuration, plans, study, checkpoint)
    write_picture(shown, out)
    typer.echo(f"study {shown.name}: {len(shown.slices)} host slices, guests {', '.join(shown.guests)}")
    typer.echo(f"wrote {out}")
