"""A task of the Medical Segmentation Decathlon (TaskXX_Name)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.conversion.cases import Listing
from ctnet_nnunet.conversion.command import run_script, source_command


@source_command
def msd(
    root: Annotated[Path, typer.Argument(help="The task's folder, with its dataset.json.")],
    test_as_unlabelled: Annotated[
        bool, typer.Option("--test-as-unlabelled", help="Put imagesTs into imagesUn, for pretraining.")
    ] = False,
) -> Listing:
    """Convert a Decathlon task as nnUNetv2_convert_MSD_dataset does, with checks, RAS orientation and folds."""
    # Here, so that `ctnet --help` does not wait for the image libraries.
    from ctnet_nnunet.conversion.sources.msd import list_msd

    return list_msd(root, test_as_unlabelled)


if __name__ == "__main__":
    run_script(msd)
