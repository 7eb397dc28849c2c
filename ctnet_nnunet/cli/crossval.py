"""``ctnet crossval``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.files import disk_errors
from ctnet_nnunet.shim_path import VARIABLE, with_shim

if TYPE_CHECKING:
    from ctnet_nnunet.cluster.chain import Chain
    from ctnet_nnunet.cluster.crossval import Crossval
    from ctnet_nnunet.cluster.options import SlurmOptions
    from ctnet_nnunet.cluster.step import Step


def crossval(
    dataset: Annotated[str, typer.Argument(metavar="ID", help="Dataset id or name, with plans.")],
    configuration: Annotated[str, typer.Argument(metavar="CONFIG", help="Configuration, for example 3d_fullres.")],
    trainer: Annotated[str, typer.Option("-tr", help="Trainer of the folds.")] = "nnUNetTrainerCTNet",
    plans: Annotated[str, typer.Option("-p", help="Name of the plans.")] = "nnUNetPlans",
    pretrain: Annotated[
        str | None, typer.Option(help="Trainer that pretrains each fold, on that fold's images and imagesUn.")
    ] = None,
    folds: Annotated[list[int] | None, typer.Option(help="Folds, for example 0 1 2; all by default.")] = None,
    engine: Annotated[
        str, typer.Option(help="local: one after another on this machine; slurm: as jobs with dependencies.")
    ] = "local",
    device: Annotated[str, typer.Option("-device", "--device", help="cpu, cuda or mps.")] = "cuda",
    gpus: Annotated[int | None, typer.Option("--gpus-per-job", help="GPUs of a training; 1 with cuda.", min=0)] = None,
    batch_per_rank: Annotated[
        int | None, typer.Option(help="Samples of each GPU's process, in place of the plan's batch divided.", min=1)
    ] = None,
    cpus: Annotated[int, typer.Option("--cpus-per-job", help="Cores of a job, and of preprocessing.", min=1)] = 4,
    time: Annotated[str, typer.Option(help="slurm: wall time of a job; a training goes on in the next.")] = "24:00:00",
    warning: Annotated[
        int, typer.Option(help="slurm: seconds before the wall time's end at which a checkpoint is written.", min=15)
    ] = 120,
    slurm: Annotated[list[str] | None, typer.Option(help="slurm: options of sbatch, like partition=gpu.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and its cost.")] = False,
    epoch_seconds: Annotated[
        float | None, typer.Option(help="For --dry-run, where no training of that trainer has been measured.", min=0)
    ] = None,
) -> None:
    """A whole cross-validation: preprocess, pretrain, folds, the folds' figures and postprocessing, report.

    Only what is missing runs; the same command again goes on after any interruption.
    """
    if device not in ("cpu", "cuda", "mps"):
        raise SetupError(f"-device {device!r}: cpu, cuda or mps")
    if engine not in ("local", "slurm"):
        raise SetupError(f"--engine {engine}: local or slurm")
    gpus = (1 if device == "cuda" else 0) if gpus is None else gpus
    if gpus and device != "cuda":
        raise SetupError(f"--gpus-per-job {gpus}: none with -device {device}")
    from ctnet_nnunet.nnunet_version import require_supported_nnunet

    require_supported_nnunet()
    os.environ[VARIABLE] = with_shim(os.environ.get(VARIABLE))  # nnU-Net reads it when it is imported
    from ctnet_nnunet.cluster.crossval import Request, plan_crossval
    from ctnet_nnunet.cluster.options import SlurmOptions, parse_minutes, parse_parameters
    from ctnet_nnunet.cluster.slurm import require_slurm
    from ctnet_nnunet.cluster.step import needed

    options = SlurmOptions(parse_minutes(time), gpus, cpus, parse_parameters(slurm or []), warning)
    if engine == "slurm":
        require_slurm(options)
    request = Request(
        *(dataset, configuration, trainer, plans, pretrain, folds or (), device, max(gpus, 1), cpus, batch_per_rank)
    )
    planned = plan_crossval(request)
    if planned.unknown and pretrain is not None:
        typer.echo(f"not begun by ctnet crossval, so from which pretraining is not known: {', '.join(planned.unknown)}")
    todo = needed(planned.steps)
    if dry_run:
        _say_costs(planned, todo, engine, gpus, epoch_seconds)
    elif not todo:
        typer.echo("everything is finished")
        _say_figures(planned)
    elif engine == "slurm":
        _submit(planned, options)
    else:
        _run(planned)


def _submit(planned: Crossval, options: SlurmOptions) -> None:
    from ctnet_nnunet.cluster.crossval import write_splits
    from ctnet_nnunet.cluster.submit import submit_chain

    with disk_errors(planned.folder):
        submit_chain(_chain(planned), options, lambda: write_splits(planned.target), typer.echo)
    typer.echo(f"logs and records: {planned.folder}; watch it with: ctnet status {planned.request.dataset} --watch")


def _run(planned: Crossval) -> None:
    from ctnet_nnunet.cluster.crossval import write_splits
    from ctnet_nnunet.cluster.local import run_here

    try:
        with disk_errors(planned.folder):
            failures = run_here(_chain(planned), lambda: write_splits(planned.target), typer.echo)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    for title, reason in failures.items():
        typer.echo(f"failed: {title}: {reason}", err=True)
    if failures:
        raise typer.Exit(1)
    _say_figures(planned)


def _chain(planned: Crossval) -> Chain:
    from ctnet_nnunet.cluster.chain import Chain

    return Chain(planned.folder, f"{planned.target.dataset} {planned.model.name}", planned.steps)


def _say_figures(planned: Crossval) -> None:
    from ctnet_nnunet.cluster.figures import crossval_figures

    for line in crossval_figures(planned):
        typer.echo(line)


def _say_costs(planned: Crossval, todo: list[Step], engine: str, gpus: int, epoch_seconds: float | None) -> None:
    from ctnet_nnunet.cluster.figures import cost_lines

    for line in cost_lines(planned, todo, engine, gpus, epoch_seconds):
        typer.echo(line)
