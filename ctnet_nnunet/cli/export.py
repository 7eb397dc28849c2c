"""``ctnet export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[Path, typer.Argument(help="A model's folder (…/TRAINER__PLANS__CONFIGURATION), or a bundle.")],
    output: Annotated[Path, typer.Option("-o", help="The file to write, for `ctnet predict -m`.")],
    folds: Annotated[list[str] | None, typer.Option("-f", help="Folds; all that are trained by default.")] = None,
    openvino: Annotated[bool, typer.Option("--openvino", help="Add the networks as OpenVINO's files.")] = False,
    force: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Write a model as one file of safetensors and checked JSON, which `ctnet predict -m` loads as data."""
    from ctnet_nnunet.nnunet_version import require_supported_nnunet

    require_supported_nnunet()
    from ctnet_nnunet.files import sha256
    from ctnet_nnunet.inference.export import export_model

    written = export_model(model, output, folds, force, openvino)
    typer.echo(f"{written.trainer}, {written.configuration_name}, folds {', '.join(written.folds)}")
    typer.echo(f"wrote {output} ({output.stat().st_size / 1e6:.2f} MB), SHA-256 {sha256(output)}")
