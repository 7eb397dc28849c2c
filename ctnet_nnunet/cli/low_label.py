"""``ctnet benchmark low-label``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ctnet_nnunet.errors import SetupError

DEFAULT_ARMS = ("unet", "unet-adamw", "ctnet", "ctnet+ssl", "unet+volf", "ctnet+volf", "ctnet-full")


def low_label(
    dataset: Annotated[str, typer.Option("-d", help="Dataset id or name, planned and preprocessed.")],
    out: Annotated[Path, typer.Option(help="Folder of the comparison; an interrupted one goes on there.")],
    labels: Annotated[list[int], typer.Option(help="Numbers of labelled cases, for example 1 5.", min=1)],
    iterations: Annotated[int, typer.Option(help="Iterations of a supervised training.", min=1)],
    pretrain_iterations: Annotated[
        int | None, typer.Option(help="Iterations of a pretraining; needed if an arm has one.", min=1)
    ] = None,
    draws: Annotated[int, typer.Option(help="Draws of the labelled cases; three or more for a claim.", min=1)] = 3,
    arms: Annotated[
        list[str] | None,
        typer.Option(help="Arms to compare, by name; see below. With --checkpoint, none but its own if none is named."),
    ] = None,
    test_cases: Annotated[
        Path | None, typer.Option(help="File with the test cases, one a line; else a fifth is drawn.")
    ] = None,
    pool_cases: Annotated[Path | None, typer.Option(help="File with the pool's cases; else all others.")] = None,
    leave_out: Annotated[Path | None, typer.Option(help="File with cases to use nowhere.")] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression whose group finds the patient: a label is then a patient.")
    ] = None,
    configuration: Annotated[str, typer.Option("-c", help="Configuration.")] = "3d_fullres",
    plans: Annotated[str, typer.Option("-p", help="Base plans: patch, spacing, features of all arms.")] = "nnUNetPlans",
    preset: Annotated[str | None, typer.Option(help="Preset of the CTNet arms; the base plan's by default.")] = None,
    epochs: Annotated[int, typer.Option(help="Epochs that a training is cut into.", min=2)] = 25,
    seed: Annotated[int, typer.Option(help="Of draws and trainings.", min=0, max=2**32 - 1)] = 12345,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE in the ctnet block of every arm.")
    ] = None,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", help="NAME=FILE of yours: the start of ARM@NAME (ctnet@NAME if no arm has it)."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Trainings at once; on a CPU they share its cores.", min=1)] = 1,
    device: Annotated[str, typer.Option("-device", "--device", help="cpu, cuda or mps.")] = "cpu",
) -> None:
    """What pretraining gives with few labels: real trainings on the same draws, compared on cases none has seen.

    Arms: unet, unet-adamw, ctnet, ctnet-identity, ctnet+rotation, ctnet+masked, ctnet+ssl, unet+volf, ctnet+volf,
    ctnet+ssl+volf, ctnet-full (all labels of the pool); location, lines, planes (2d: imaging planes on the
    plan's U-Net, whose scratch arm is unet-adamw); unet-twin, unet-mean-teacher, unet-reciprocal, their +volf, the same
    of ctnet, their +ssl (semi-supervised, and without unlabelled scans).
    """
    if device not in ("cpu", "cuda", "mps"):
        raise SetupError(f"-device {device!r}: cpu, cuda or mps")
    from ctnet_nnunet.low_label.run import Request, run_comparison

    request = Request(
        dataset=dataset,
        labels=labels,
        draws=draws,
        arms=arms or (() if checkpoints else DEFAULT_ARMS),
        iterations=iterations,
        pretrain_iterations=pretrain_iterations,
        out=out.resolve(),
        configuration=configuration,
        plans=plans,
        preset=preset,
        epochs=epochs,
        seed=seed,
        test_cases=test_cases,
        pool_cases=pool_cases,
        leave_out=leave_out,
        patient_pattern=patient_pattern,
        assignments=assignments or [],
        checkpoints=_named_files(checkpoints or []),
        workers=workers,
        device=device,
    )
    pages, failures = run_comparison(request, typer.echo)
    for page in pages:
        typer.echo(f"wrote {page}")
    for title, reason in failures.items():
        typer.echo(f"failed: {title}: {reason}", err=True)
    if failures:
        raise typer.Exit(1)


def _named_files(assignments: list[str]) -> dict[str, str]:
    named: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, file = assignment.partition("=")
        if not equals or not name.isidentifier() or not file:
            raise SetupError(f"--checkpoint {assignment!r}: write it as NAME=FILE, NAME of letters, digits and _")
        if not Path(file).is_file():
            raise SetupError(f"--checkpoint {name}: {file} does not exist")
        named[name] = file
    return named
