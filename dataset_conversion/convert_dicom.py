"""Folders of DICOM series: single-frame series directly, mosaics and enhanced files through dcm2niix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.conversion.cases import Listing
from ctnet_nnunet.conversion.command import run_script, source_command


@source_command
def dicom(
    root: Annotated[Path, typer.Argument(help="The folder with one folder for each case, or one case's folder.")],
    cases: Annotated[str, typer.Option(help="Which folders are cases: * or, a level deeper, */*.")] = "*",
    channel: Annotated[
        list[str] | None,
        typer.Option(help="NAME=REGEX on the series' description. Repeat it. Default: the only series."),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="A folder of NIfTI label maps, named as the cases.")] = None,
    volume: Annotated[int | None, typer.Option(min=0, help="Which volume of a time series.")] = None,
) -> Listing:
    """Convert folders of DICOM series. Folds are grouped by PatientID, which is not written anywhere.

    Mosaics and enhanced (multi-frame) files need dcm2niix: pip install dcm2niix.
    """
    # Here, so that `ctnet --help` does not wait for the image libraries.
    from ctnet_nnunet.conversion.sources.dicom import list_dicom

    return list_dicom(root, cases, channel or [], labels, volume)


if __name__ == "__main__":
    run_script(dicom)
