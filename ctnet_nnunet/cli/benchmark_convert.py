"""``ctnet benchmark convert``: the conversion table of docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.errors import SetupError


def convert(
    cases: Annotated[int, typer.Option(help="Generated cases.", min=1)] = 100,
    size: Annotated[str, typer.Option(help="Voxels per axis.")] = "160,192,160",
    processes: Annotated[int | None, typer.Option("-np", "--processes", min=1, help="Default: one per CPU.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the raw figures as JSON.")] = None,
) -> None:
    """Cases per minute and peak memory of ctnet convert nifti, beside ITK's reading and writing alone."""
    from ctnet_nnunet.benchmark.conversion import measure_conversion
    from ctnet_nnunet.benchmark.measure import write_json
    from ctnet_nnunet.conversion.settings import Settings

    parts = size.split(",")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 7 for part in parts):
        raise SetupError(f"--size {size!r}: three numbers of voxels from 8 on, for example 160,192,160")
    workers = processes or Settings(1, "x").workers
    sizes = tuple(int(part) for part in parts)
    figures = measure_conversion(cases, sizes, workers, lambda line: typer.echo(line, err=True))
    typer.echo("| cases | voxels | processes | cases/min | CPU s/case | ITK alone | peak of a worker, MB |")
    typer.echo("|---|---|---|---|---|---|---|")
    typer.echo(
        f"| {cases} | {'×'.join(parts)} | {workers} | {figures.cases_per_minute:.0f} | {figures.worker_seconds:.2f} | "
        f"{figures.bare_seconds:.2f} | {figures.peak_worker_bytes / 2**20:.0f} |"
    )
    if out is not None:
        write_json(out, {"size": size, **dataclasses.asdict(figures)})
