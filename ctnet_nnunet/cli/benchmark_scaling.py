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
    patch: Annotated[str, typer.Option(help="Another patch: operations grow with its voxels, weights do not.")] = "",
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs.")] = "2,4,8,16,32,64",
    wanted: Annotated[float, typer.Option(help="Efficiency that still pays.", min=0.01, max=0.99)] = 0.8,
) -> None:
    """Predicted efficiency of several GPUs from the measured cost of a step, for common links; nothing is trained."""
    from ctnet_nnunet.benchmark.scaling import read_cost, tables

    counts = _whole_numbers("--gpus", gpus, "2,8,64")
    sizes = _whole_numbers("--patch", patch, "128,128,128") if patch else []
    if tflops <= 0:
        raise SetupError(f"--tflops {tflops}: a positive number")
    typer.echo(tables([read_cost(file, sizes) for file in files], samples, counts, tflops * 1e12, wanted))


def _whole_numbers(option: str, text: str, example: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise SetupError(f"{option} {text!r}: whole numbers, for example {example}")
    return [int(part) for part in parts]
