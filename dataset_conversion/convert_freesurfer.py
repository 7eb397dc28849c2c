"""A FreeSurfer or FastSurfer subjects folder: T1 and aseg, reduced to the deep gray matter or a chosen list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.conversion.cases import Listing
from ctnet_nnunet.conversion.command import run_script, source_command

NAMES = Path(__file__).with_name("freesurfer_aseg.csv")


@source_command
def freesurfer(
    root: Annotated[Path, typer.Argument(help="The folder with the subjects (SUBJECTS_DIR).")],
    image: Annotated[list[str] | None, typer.Option(help="A file of mri/; repeat for more channels. [T1.mgz]")] = None,
    labels: Annotated[str, typer.Option(help="The label map in mri/.")] = "aseg.mgz",
    structures: Annotated[
        str, typer.Option(help="deep-gray (8 labels), all, or numbers and names such as 17,Right-Hippocampus.")
    ] = "deep-gray",
    lut: Annotated[
        Path | None, typer.Option(help="FreeSurferColorLUT.txt or a CSV of number,name. Default: the aseg's.")
    ] = None,
) -> Listing:
    """Convert FreeSurfer subjects; structures that are not chosen become background.

    The labels are automatic, not manual. Subjects without a label map go to imagesUn.
    """
    # Here, so that `ctnet --help` does not wait for the image libraries.
    from ctnet_nnunet.conversion.sources.freesurfer import list_freesurfer

    return list_freesurfer(root, image or ["T1.mgz"], labels, structures, lut or NAMES)


if __name__ == "__main__":
    run_script(freesurfer)
