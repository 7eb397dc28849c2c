"""NIfTI files (NRRD and MGH, too) in any folder: as pairs, by patterns, or from a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.conversion.cases import Listing
from ctnet_nnunet.conversion.command import run_script, source_command
from ctnet_nnunet.errors import DataError


@source_command
def nifti(
    images: Annotated[Path, typer.Argument(help="A folder of images, the folder of the patterns, or a CSV table.")],
    labels: Annotated[str | None, typer.Option(help="The folder of label maps, or their pattern.")] = None,
    channel: Annotated[
        list[str] | None, typer.Option(help="NAME, or NAME=PATTERN such as T1w={patient}/{case}_T1.nii.gz. Repeat it.")
    ] = None,
) -> Listing:
    """Convert NIfTI files: two folders with the same names, files that fit a pattern, or the rows of a CSV table.

    A table has the columns case, label, patient, site and one for each channel. Scans without a label go to imagesUn.
    """
    # Here, so that `ctnet --help` does not wait for the image libraries.
    from ctnet_nnunet.conversion.sources.nifti import list_pairs, list_patterns, list_table

    channels = channel or []
    if images.is_file():
        if labels or channels:
            raise DataError(f"{images}: is a table, which names labels and channels; leave --labels and --channel out")
        return list_table(images)
    if any("=" in name for name in channels):
        return list_patterns(images, channels, labels)
    return list_pairs(images, Path(labels) if labels else None, channels)


if __name__ == "__main__":
    run_script(nifti)
