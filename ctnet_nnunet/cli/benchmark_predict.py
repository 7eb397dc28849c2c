"""``ctnet benchmark predict``: the prediction tables of docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctnet_nnunet.errors import SetupError

if TYPE_CHECKING:
    from ctnet_nnunet.benchmark.predict import Job


def predict(
    scans: Annotated[Path | None, typer.Option("-i", help="Scans in nnU-Net's naming.")] = None,
    model: Annotated[Path | None, typer.Option("-m", help="A model's folder.")] = None,
    folds: Annotated[list[str] | None, typer.Option("-f", help="Folds; all numbered ones by default.")] = None,
    references: Annotated[Path | None, typer.Option("--labels", help="Folder of manual labels, for Dice.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="torch, openvino; both by default.")] = None,
    speed: Annotated[list[str] | None, typer.Option(help="best, balanced, fast; all by default.")] = None,
    trade_off: Annotated[
        bool, typer.Option("--trade-off", help="Mirrors, step and folds of ctnet predict against each other instead.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Runs of each; the spread is over them.", min=1)] = 3,
    memory: Annotated[bool, typer.Option("--memory", help="Peak memory on a large generated scan instead.")] = False,
    size: Annotated[str, typer.Option(help="With --memory: voxels per axis.")] = "320,320,240",
    classes: Annotated[int, typer.Option(help="With --memory: classes with background.", min=2)] = 20,
    out: Annotated[Path | None, typer.Option(help="Also write the raw figures as JSON.")] = None,
) -> None:
    """Seconds and labels of ctnet predict beside nnUNetv2_predict -device cpu: same model, folds, mirrors, step."""
    if memory:
        _memory(size, classes, out)
        return
    if scans is None or model is None:
        raise SetupError("ctnet benchmark predict: give scans with -i and a model with -m, or --memory")
    from ctnet_nnunet.benchmark.measure import write_json
    from ctnet_nnunet.benchmark.predict import markdown, measure_prediction, read_job

    job = read_job(scans, model, folds or [], references)
    if trade_off:
        _trade_off(job, engine or ["auto"], repeats, out)
        return
    engines, speeds = engine or ["torch", "openvino"], speed or ["best", "balanced", "fast"]
    rows = measure_prediction(job, engines, speeds, repeats, lambda line: typer.echo(line, err=True))
    for line in markdown(rows):
        typer.echo(line)
    if out is not None:
        write_json(out, {"model": str(model), "rows": [dataclasses.asdict(row) for row in rows]})


def _trade_off(job: Job, engines: list[str], repeats: int, out: Path | None) -> None:
    from ctnet_nnunet.benchmark.measure import write_json
    from ctnet_nnunet.benchmark.trade_off import measure_trade_off, settings_of, trade_off_table

    if len(engines) > 1:
        raise SetupError("--trade-off compares settings of one engine; give --engine once")
    rows = settings_of(job.folds)
    measure_trade_off(job, rows, engines[0], repeats, lambda line: typer.echo(line, err=True))
    for line in trade_off_table(rows):
        typer.echo(line)
    if out is not None:
        write_json(out, {"model": str(job.model), "rows": [dataclasses.asdict(row) for row in rows]})


def _memory(size: str, classes: int, out: Path | None) -> None:
    from ctnet_nnunet.benchmark.measure import write_json
    from ctnet_nnunet.benchmark.predict_memory import measure_memory

    parts = size.split(",")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 7 for part in parts):
        raise SetupError(f"--size {size!r}: three numbers of voxels from 8 on, for example 320,320,240")
    rows = [measure_memory([int(part) for part in parts], classes, resampled) for resampled in (False, True)]
    typer.echo("| voxels | classes | resampled | peak GB |")
    typer.echo("|---|---|---|---|")
    for row in rows:
        typer.echo(f"| {'×'.join(parts)} | {classes} | {'yes' if row.resampled else 'no'} | {row.peak / 1e9:.2f} |")
    if out is not None:
        write_json(out, {"rows": [dataclasses.asdict(row) for row in rows]})
