"""Short-axis cine MRI of the heart: ACDC's folders, or M&Ms' with its table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.conversion.cases import Listing
from ctnet_nnunet.conversion.command import run_script, source_command


@source_command
def cardiac_sax(
    root: Annotated[Path, typer.Argument(help="The folder with one folder for each patient.")],
    mms_table: Annotated[
        Path | None, typer.Option(help="M&Ms: the CSV file with External code, ED, ES and Centre.")
    ] = None,
) -> Listing:
    """Convert short-axis stacks; both phases of a patient stay on one side of every fold.

    --stratify-sites spreads ACDC's groups of disease, or M&Ms' centres. Frames without a label map go to imagesUn.
    """
    # Here, so that `ctnet --help` does not wait for the image libraries.
    from ctnet_nnunet.conversion.sources.cardiac_sax import list_acdc, list_mms

    return list_mms(root, mms_table) if mms_table else list_acdc(root)


if __name__ == "__main__":
    run_script(cardiac_sax)
