"""``ctnet predict``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.inference.speed import speed_of
from ctnet_nnunet.nnunet_version import require_supported_nnunet
from ctnet_nnunet.training_log import clock

if TYPE_CHECKING:
    from ctnet_nnunet.inference.cost import Cost
    from ctnet_nnunet.inference.run import Batch, Request

LINE_EVERY_SECONDS = 10.0
ENGINES = ("auto", "torch", "openvino")


class Lines:
    """A line for each case with what it costs, and one now and then with the time that is left."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.started = self.next_line = 0.0
        self.others_left = 0

    def case(self, number: int, total: int, name: str, cost: Cost) -> None:
        typer.echo(
            f"[{number}/{total}] {name}: {_search(cost)}{cost.tiles} tiles × {cost.mirrors} mirrors × {cost.folds} "
            f"folds = {cost.passes} forward passes{_estimate(cost)}"
        )
        self.total, self.done, self.others_left = cost.passes, 0, total - number
        self.started = time.monotonic()
        self.next_line = self.started + LINE_EVERY_SECONDS

    def passed(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now >= self.next_line:
            self.next_line = now + LINE_EVERY_SECONDS
            each = (now - self.started) / self.done
            left = clock(each * (self.total - self.done))
            more = f", then {self.others_left} more scans" if self.others_left else ""
            typer.echo(f"    {self.done}/{self.total}, about {left} min left{more}")

    def line(self, text: str) -> None:
        typer.echo(text)


def _search(cost: Cost) -> str:
    """``in a box, 12 to find it + `` where there is one."""
    return f"in a box: {cost.search} to find it + " if cost.search else ""


def _estimate(cost: Cost) -> str:
    """``, about 1:05 min and 2.1 GB`` where that is known."""
    if cost.seconds is None or cost.peak_bytes is None:
        return ""
    instead = "" if cost.whole is None else f" instead of {cost.whole}"
    return f"{instead}, about {clock(cost.seconds)} min and {cost.peak_bytes / 1e9:.1f} GB of memory"


def predict(
    source: Annotated[
        Path, typer.Option("-i", help="A scan, a folder of scans, a DICOM folder, a BIDS dataset, or a zip.")
    ],
    out: Annotated[Path, typer.Option("-o", help="Folder for label maps, volumes.csv, run.json, reports.")],
    model: Annotated[Path, typer.Option("-m", help="A model's folder: …/TRAINER__PLANS__CONFIGURATION.")],
    folds: Annotated[list[str] | None, typer.Option("-f", help="Folds; all that are trained by default.")] = None,
    speed: Annotated[str, typer.Option(help="best: float32; balanced: bf16; fast: also no mirrors.")] = "balanced",
    report: Annotated[bool, typer.Option("--report", help="A page for each scan and one for the batch.")] = False,
    device: Annotated[str, typer.Option("-device", "--device", help="cpu, cuda or mps.")] = "cpu",
    engine: Annotated[
        str,
        typer.Option(help="auto, torch or openvino (on the CPU, with the extra [cpu]); slurm[:ENGINE] for --jobs."),
    ] = "auto",
    mirrors: Annotated[
        bool | None, typer.Option("--mirrors/--no-mirrors", help="In place of what --speed says.")
    ] = None,
    step: Annotated[float | None, typer.Option(help="Of the window, as a share of the patch; likewise.")] = None,
    maps: Annotated[bool, typer.Option("--maps", help="Also entropy and disagreement of the folds as NIfTI.")] = False,
    box: Annotated[
        bool, typer.Option("--box", help="Find the structures by a coarse pass first and predict only the box there.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Write over earlier label maps.")] = False,
    channel: Annotated[
        list[str] | None,
        typer.Option(help="NAME=REGEX on DICOM series' descriptions, NAME=SUFFIX in BIDS; once a channel."),
    ] = None,
    volume: Annotated[
        str | None, typer.Option(help="Of a 4D NIfTI: which volume is the scan: a number from 0 on, first or all.")
    ] = None,
    synthesis: Annotated[
        Path | None, typer.Option(help="A nnUNetTrainerCMFT model that makes a pair of sequences that a scan lacks.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only these scans, by the names of the tables.")] = None,
    jobs: Annotated[int | None, typer.Option(help="slurm: into how many jobs the scans are dealt.", min=1)] = None,
    time_limit: Annotated[str, typer.Option("--time", help="slurm: wall time of a job.")] = "4:00:00",
    gpus: Annotated[int | None, typer.Option("--gpus-per-job", help="slurm: 1 with cuda, else 0.", min=0)] = None,
    cpus: Annotated[int, typer.Option("--cpus-per-job", help="slurm: cores of a job.", min=1)] = 4,
    slurm: Annotated[list[str] | None, typer.Option(help="slurm: options of sbatch, like partition=gpu.")] = None,
) -> None:
    """Predict new scans with all folds of a model; labels in each scan's own grid, volumes, how far the folds agree."""
    require_supported_nnunet()
    speed_of(speed).changed(mirrors, step)
    from ctnet_nnunet.inference.run import Request, predict_scans

    chosen, named = channel or [], only or []
    cluster, _, inside = engine.partition(":")
    each = (inside or "auto") if cluster == "slurm" else engine
    request = Request(
        *(source, out, model, folds, speed, device, each, maps, report, force, chosen, synthesis, named),
        box=box, mirrors=mirrors, step=step, volume=volume,
    )  # fmt: skip
    if cluster == "slurm":
        batch = _in_jobs(request, jobs, (time_limit, gpus, cpus, slurm or []))
    elif jobs is not None or slurm:
        raise SetupError("--jobs and --slurm: only with --engine slurm")
    else:
        batch = predict_scans(request, Lines())
    for case, items in batch.measurements.items():
        flagged = [f"{item.structure}: {', '.join(item.flags)}" for item in items if item.flags]
        typer.echo(f"{case}: {', '.join(f'{item.structure} {item.volume_ml:.2f} ml' for item in items)}")
        for text in flagged:
            typer.echo(f"    look at {text}")
    typer.echo(f"wrote {len(batch.labels)} label maps, volumes.csv, volumes.json and run.json in {out}")
    if companions := [file for files in batch.companions.values() for file in files]:
        typer.echo(f"wrote {len(companions)} DICOM-SEG beside them")
    if report:
        typer.echo(f"wrote {out / 'report.html'}")
    for case, reason in batch.failures.items():
        typer.echo(f"failed: {case}: {reason}", err=True)
    if batch.failures:
        raise typer.Exit(1)


def _in_jobs(request: Request, jobs: int | None, asked: tuple[str, int | None, int, list[str]]) -> Batch:
    """Check what was asked for before anything is loaded, and hand over with absolute paths."""
    from ctnet_nnunet.cluster.options import SlurmOptions, parse_minutes, parse_parameters
    from ctnet_nnunet.cluster.slurm import require_slurm

    time_limit, gpus, cpus, slurm = asked
    if jobs is None:
        raise SetupError("--engine slurm: say into how many jobs, with --jobs")
    if request.engine not in ENGINES:
        raise SetupError(f"--engine slurm:{request.engine}: one of {', '.join(f'slurm:{name}' for name in ENGINES)}")
    if request.device not in ("cpu", "cuda", "mps"):
        raise SetupError(f"--device {request.device!r}: cpu, cuda or mps")
    wanted = (1 if request.device == "cuda" else 0) if gpus is None else gpus
    options = SlurmOptions(parse_minutes(time_limit), wanted, cpus, parse_parameters(slurm))
    require_slurm(options)
    from ctnet_nnunet.cluster.predict import predict_sharded

    absolute = replace(
        request,
        source=request.source.resolve(),
        out=request.out.resolve(),
        model=request.model.resolve(),
        synthesis=None if request.synthesis is None else request.synthesis.resolve(),
    )
    try:
        return predict_sharded(absolute, jobs, options, typer.echo)
    except KeyboardInterrupt:
        typer.echo("interrupted; the jobs go on, and the same command again waits for them", err=True)
        raise typer.Exit(130) from None
