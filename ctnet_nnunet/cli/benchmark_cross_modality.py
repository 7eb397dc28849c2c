"""``ctnet benchmark cross-modality``: the cross-modality tables of docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.errors import SetupError


def cross_modality(
    data: Annotated[Path, typer.Argument(help="Folder with images, labels (CASE.nii.gz) and dataset.json.")],
    work: Annotated[Path, typer.Option("-o", help="New folder for data sets, trainings and logs.")],
    patch: Annotated[str, typer.Option(help="Voxels per axis, multiples of 16 from 32 on.")] = "48,48,32",
    box: Annotated[str, typer.Option(help="Voxels per axis that a scan is cropped to, round its labels.")] = "72,72,48",
    features: Annotated[int, typer.Option(help="Channels at full resolution; the paper's are 16.", min=1)] = 8,
    epochs: Annotated[int, typer.Option(help="Epochs of every training.", min=4)] = 12,
    iterations: Annotated[int, typer.Option(help="Iterations of an epoch.", min=1)] = 12,
    learning_rate: Annotated[float, typer.Option(help="Of every training; the paper's is 0.0001.", min=1e-9)] = 1e-4,
    seeds: Annotated[int, typer.Option(help="Trainings of everything, from seed 0 on.", min=1)] = 1,
    device: Annotated[str, typer.Option("-device", "--device", help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Also write the raw figures as JSON.")] = None,
) -> None:
    """Losses of stage 1, and of stage 2 from it, from Kaiming's start and as one U-Net; each scan is left out once."""
    from ctnet_nnunet.benchmark.cross_modality import Runs, compare_starts
    from ctnet_nnunet.benchmark.cross_modality_tables import tables
    from ctnet_nnunet.benchmark.measure import write_json

    runs = Runs(
        data,
        work.absolute(),  # the trainings run in it, and name what they start from
        _sizes("--box", box),
        _sizes("--patch", patch),
        features,
        epochs,
        iterations,
        learning_rate,
        seeds,
        device,
    )
    figures = compare_starts(runs, lambda line: typer.echo(line, err=True))
    typer.echo(tables(figures))
    typer.echo(f"pictures: {', '.join(figures.pictures)}", err=True)
    if out is not None:
        write_json(out, dataclasses.asdict(figures))


def _sizes(option: str, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise SetupError(f"{option} {text!r}: three numbers of voxels, for example 48,48,32")
    return tuple(int(part) for part in parts)
