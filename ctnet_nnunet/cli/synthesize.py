"""``ctnet synthesize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.nnunet_version import require_supported_nnunet


def synthesize(
    source: Annotated[Path, typer.Option("-i", help="Scans in nnU-Net's naming; a pair may be missing.")],
    out: Annotated[Path, typer.Option("-o", help="Folder for the made sequences and synthesis.json.")],
    model: Annotated[Path, typer.Option("-m", help="A model of nnUNetTrainerCMFT, or its fold_X.")],
    pair: Annotated[str | None, typer.Option(help="a or b: make this pair; else the one that is missing.")] = None,
    device: Annotated[str, typer.Option("-device", "--device", help="cpu, cuda or mps.")] = "cpu",
    force: Annotated[bool, typer.Option(help="Write over earlier files.")] = False,
) -> None:
    """Make one pair of MR sequences from the other; generated images, in normalised intensities."""
    require_supported_nnunet()
    if pair not in (None, "a", "b"):
        raise SetupError(f"--pair {pair}: a or b")
    from ctnet_nnunet.inference.run import torch_device
    from ctnet_nnunet.inference.synthesize import synthesize_scans

    result = synthesize_scans(source, out, model, torch_device(device), pair, force, typer.echo)  # type: ignore[arg-type]
    typer.echo(f"wrote {sum(map(len, result.written.values()))} images and synthesis.json in {out}")
    for case, reason in result.failures.items():
        typer.echo(f"failed: {case}: {reason}", err=True)
    if result.failures:
        raise typer.Exit(1)
