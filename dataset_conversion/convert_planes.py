"""Studies of imaging planes for pretraining: DICOM, NIfTI, or cut out of isotropic volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.conversion.command import run_script
from ctnet_nnunet.errors import DataError


def planes(
    source: Annotated[
        Path | None, typer.Argument(help="The folder with one folder for each study, of DICOM or NIfTI files.")
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The dataset: Dataset501_Heart in $nnUNet_raw, or its path.")
    ] = Path(),
    role: Annotated[
        list[str] | None, typer.Option(help="REGEX=ROLE on a series' description or a file's name. Repeat it.")
    ] = None,
    host: Annotated[list[str] | None, typer.Option(help="Role whose slices are looked at. Repeat it. [SAX]")] = None,
    guest: Annotated[list[str] | None, typer.Option(help="Role whose lines are found. Repeat it. [2CH, 4CH]")] = None,
    sigma: Annotated[float | None, typer.Option(help="σ of the heatmaps in mm. [7.56]", min=0.01)] = None,
    study_pattern: Annotated[
        str | None, typer.Option(help="Regular expression whose first group finds the study in a file's name.")
    ] = None,
    reslice: Annotated[
        Path | None, typer.Option(help="Instead of SOURCE: a volume or a folder of them, to be cut into studies.")
    ] = None,
    scheme: Annotated[
        str, typer.Option(help="--reslice: cardiac (SAX, 2CH, 4CH), head or orthogonal (AX, COR, SAG).")
    ] = "head",
    gap: Annotated[float | None, typer.Option(help="--reslice: slice distance, mm. [3 voxels]", min=0.01)] = None,
    repeat: Annotated[int, typer.Option(help="--reslice: studies of each volume.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="--reslice: of the hosts' random tilt and shift.", min=0)] = 0,
    labelled: Annotated[
        str | None, typer.Option(help="Instead of SOURCE: enter the dataset's imagesTr as stacks of this role.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace studies that are there already.")] = False,
) -> None:
    """Add studies of imaging planes to a dataset's imagesUn, with planes.json, for nnUNetTrainerImagingPlanes."""
    # Here, so that `ctnet --help` does not wait for the image libraries.
    from ctnet_nnunet.conversion.planes.convert import (
        PlanesRequest,
        convert_studies,
        describe_labelled,
        reslice_studies,
    )
    from ctnet_nnunet.conversion.planes.reslice import Reslicing
    from ctnet_nnunet.conversion.planes.show import show
    from ctnet_nnunet.conversion.planes.write import Roles

    if sum(way is not None for way in (source, reslice, labelled)) != 1:
        raise DataError("give one of SOURCE, --reslice VOLUMES and --labelled ROLE")
    if out == Path():
        raise DataError("--out: missing; give the dataset, for example --out Dataset501_Heart")
    roles = Roles(tuple(host) if host else None, tuple(guest) if guest else None, sigma)
    request = PlanesRequest(out, roles, tuple(role or ()), study_pattern, force)
    if reslice is not None:
        report = reslice_studies(reslice, Reslicing(scheme, gap, seed, repeat), request)
    elif labelled is not None:
        report = describe_labelled(labelled, request)
    else:
        assert source is not None
        report = convert_studies(source, request)
    show(report)
    if report.exit_status:
        raise typer.Exit(report.exit_status)


if __name__ == "__main__":
    run_script(planes)
