"""``ctnet benchmark scaling``: the tables of docs/scaling.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.errors import SetupError


def scaling(
    files: Annotated[list[Path], typer.Argument(help="Written by ctnet_nnunet.train --measure-out in two ranks.")],
    tflops: Annotated[float, typer.Option(help="TFLOP/s that one GPU sustains in training; from a run of yours.")],
    samples: Annotated[int, typer.Option(help="Samples of each GPU.", min=1)] = 2,
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs.")] = "2,4,8,16,32,64",
    wanted: Annotated[float, typer.Option(help="Efficiency that still pays.", min=0.01, max=0.99)] = 0.8,
) -> None:
    """Predicted efficiency of several GPUs from the measured cost of a step, for common links; nothing is trained."""
    from ctnet_nnunet.benchmark.scaling import read_cost, tables

    counts = [int(part) for part in gpus.split(",") if part.strip().isdigit()]
    if not counts or len(counts) != len(gpus.split(",")) or min(counts) < 1:
        raise SetupError(f"--gpus {gpus!r}: whole numbers, for example 2,8,64")
    if tflops <= 0:
        raise SetupError(f"--tflops {tflops}: a positive number")
    typer.echo(tables([read_cost(file) for file in files], samples, counts, tflops * 1e12, wanted))
