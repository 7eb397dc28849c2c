"""A BIDS dataset: suffixes as channels, sessions as cases, label maps from derivatives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.conversion.cases import Listing
from ctnet_nnunet.conversion.command import run_script, source_command


@source_command
def bids(
    root: Annotated[Path, typer.Argument(help="The folder with the sub-… folders.")],
    channel: Annotated[list[str], typer.Option(help="A suffix such as T1w, or T1w,acq=mprage. Repeat it.")],
    labels: Annotated[str | None, typer.Option(help="Suffix of the label maps: dseg, or dseg,desc=manual.")] = None,
    derivatives: Annotated[Path | None, typer.Option(help="Where they lie. Default: ROOT/derivatives.")] = None,
    site_column: Annotated[str | None, typer.Option(help="Column of participants.tsv with the site.")] = None,
) -> Listing:
    """Convert a BIDS dataset: a session is a case, a subject a patient; sessions without a label go to imagesUn.

    The names of the labels come from a dseg.tsv of the derivatives where there is one.
    """
    # Here, so that `ctnet --help` does not wait for the image libraries.
    from ctnet_nnunet.conversion.sources.bids import list_bids

    return list_bids(root, channel, labels, derivatives, site_column)


if __name__ == "__main__":
    run_script(bids)
