"""``ctnet reference``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.nnunet_version import require_supported_nnunet


def reference(
    model: Annotated[Path, typer.Option("-m", help="A model's folder: …/TRAINER__PLANS__CONFIGURATION.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of the training label maps; default: gt_segmentations of the preprocessed dataset."),
    ] = None,
) -> None:
    """Measure the training cases of a model once, for `ctnet predict`: volumes, voxels, extent, orientation.

    Writes reference_volumes.json into the model's folder; `ctnet export` takes it along.
    """
    require_supported_nnunet()
    from ctnet_nnunet.evaluation.reference import measure_reference, write_reference
    from ctnet_nnunet.inference.checked_json import read_json

    if not (model / "plans.json").is_file():
        raise DataError(f"{model}: holds no plans.json; give a trained model's folder with -m")
    name = str(read_json(model / "plans.json").get("dataset_name", ""))
    found = measure_reference(labels or _label_maps(name), model / "dataset.json", name)
    file = write_reference(found, model)
    typer.echo(f"measured {found.cases} training cases, orientation {', '.join(found.orientations)}; wrote {file}")


def _label_maps(name: str) -> Path:
    """nnU-Net's copy of the dataset's label maps."""
    root = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 (nnU-Net's spelling)
    if not root or not name or Path(name).name != name:
        raise SetupError("nnUNet_preprocessed is not set: name the folder of the training label maps with --labels")
    return Path(root) / name / "gt_segmentations"
