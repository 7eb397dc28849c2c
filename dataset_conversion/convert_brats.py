"""BraTS: four sequences and a tumour segmentation a case, named as in any year of the challenge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.conversion.cases import Listing
from ctnet_nnunet.conversion.command import run_script, source_command


@source_command
def brats(
    root: Annotated[Path, typer.Argument(help="The folder with the cases, at any depth.")],
    channel: Annotated[list[str] | None, typer.Option(help="Some of T1, T1ce, T2, FLAIR; default all four.")] = None,
    regions: Annotated[
        bool, typer.Option("--regions", help="Train whole tumour, tumour core and enhancing tumour as regions.")
    ] = False,
    post_treatment: Annotated[
        bool, typer.Option("--post-treatment", help="Label 4 is the resection cavity (since 2024).")
    ] = False,
) -> Listing:
    """Convert a BraTS folder; cases without a segmentation go to imagesUn."""
    # Here, so that `ctnet --help` does not wait for the image libraries.
    from ctnet_nnunet.conversion.sources.brats import CHANNELS, list_brats

    return list_brats(root, channel or list(CHANNELS), regions, post_treatment)


if __name__ == "__main__":
    run_script(brats)
