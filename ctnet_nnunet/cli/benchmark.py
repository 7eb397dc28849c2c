"""``ctnet benchmark speed``, ``memory`` and ``low-label``: the tables of docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctnet_nnunet.cli.benchmark_convert import convert
from ctnet_nnunet.cli.benchmark_cross_modality import cross_modality
from ctnet_nnunet.cli.benchmark_predict import predict
from ctnet_nnunet.cli.benchmark_scaling import scaling
from ctnet_nnunet.cli.lists import ListsAfterOptions
from ctnet_nnunet.cli.low_label import low_label
from ctnet_nnunet.errors import PlanError, SetupError
from ctnet_nnunet.nnunet_version import require_supported_nnunet

if TYPE_CHECKING:
    import torch

    from ctnet_nnunet.benchmark.steps import Workload

app = typer.Typer(help="Measure on this machine what docs/benchmarks.md quotes.", no_args_is_help=True)

Device = Annotated[str, typer.Option("-device", "--device", help="cpu or cuda.")]
Output = Annotated[Path | None, typer.Option(help="Also write the raw figures as JSON.")]
# The three plans of the memory table: a small patch, an isotropic and an oblong one.
MEMORY_PLANS = ("40,56,40:16", "64,64,64:32", "48,96,80:32")


app.command("convert")(convert)
app.command("predict", cls=ListsAfterOptions)(predict)
app.command("cross-modality")(cross_modality)
app.command("scaling")(scaling)


@app.callback()
def _benchmark() -> None:
    require_supported_nnunet()


app.command("low-label", cls=ListsAfterOptions)(low_label)


@app.command("speed")
def speed(
    device: Device = "cpu",
    patch: Annotated[str | None, typer.Option(help="Voxels per axis; 128,128,128 on cuda, else 48,64,64.")] = None,
    batch: Annotated[int, typer.Option(help="Batch size.", min=1)] = 2,
    features: Annotated[int | None, typer.Option(help="Base features; 32 on cuda, else 16.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; the spread is over them.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Timed iterations per network and round.", min=1)] = 5,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile (cuda only).")] = True,
    out: Output = None,
) -> None:
    """Seconds per iteration and peak memory of CTNet (s, m, l, identity) beside PlainConvUNet and ResEncUNet-M.

    A step of pretraining and one of reciprocal learning, with and without a recomputed teacher pass, stand beside them.
    """
    chosen = _device(device)
    from ctnet_nnunet.benchmark.measure import machine, peak_memory, time_steps, write_json
    from ctnet_nnunet.benchmark.steps import SUBJECTS, UNET, Workload, describe

    cuda = chosen.type == "cuda"
    sizes = _sizes(patch or ("128,128,128" if cuda else "48,64,64"))
    workload = Workload(sizes, batch, features or (32 if cuda else 16))
    compiled = compiled and cuda
    typer.echo(f"{machine(chosen)}; {describe(workload)}; AdamW, {'compiled' if compiled else 'not compiled'}")
    timings = time_steps(SUBJECTS, workload, chosen, rounds, steps, compiled, lambda line: typer.echo(line, err=True))
    memory = {subject: peak_memory(subject, workload, chosen, compiled) for subject in SUBJECTS}
    typer.echo(f"| network | s/iteration | ratio (least to greatest of {rounds} rounds) | peak GB | ratio |")
    typer.echo("|---|---|---|---|---|")
    for subject in SUBJECTS:
        middle, least, greatest = timings[subject].ratio(timings[UNET])
        seconds = sorted(timings[subject].seconds)[rounds // 2]
        ratio = f"{middle:.2f} ({least:.2f} to {greatest:.2f})"
        gigabytes, more = memory[subject] / 2**30, memory[subject] / memory[UNET]
        typer.echo(f"| {subject} | {seconds:.4f} | {ratio} | {gigabytes:.2f} | {more:.2f} |")
    if out is not None:
        seconds_of = {subject: timing.seconds for subject, timing in timings.items()}
        measured = {"workload": describe(workload), "seconds": seconds_of, "peak": memory}
        write_json(out, {"machine": machine(chosen), **measured})


@app.command("memory")
def memory(device: Device = "cpu", out: Output = None) -> None:
    """The planner's estimate of a training step's memory beside the measured peak, for three plans."""
    chosen = _device(device)
    from ctnet_nnunet.benchmark.measure import machine, peak_memory, write_json
    from ctnet_nnunet.benchmark.steps import Workload, architecture_of
    from ctnet_nnunet.planning.memory import training_step_memory

    mixed = chosen.type == "cuda"
    typer.echo(f"{machine(chosen)}; CTNet-m, batch 2, AdamW, {'bf16 autocast' if mixed else 'float32'}, not compiled")
    typer.echo("| patch | base features | estimate GB | measured GB | error |")
    typer.echo("|---|---|---|---|---|")
    rows = []
    for plan in MEMORY_PLANS:
        patch, _, features = plan.partition(":")
        workload: Workload = Workload(_sizes(patch), 2, int(features))
        architecture = architecture_of("CTNet-m", workload)
        estimate = training_step_memory(architecture, workload.patch_size, 2, 1, workload.classes, mixed).total
        measured = peak_memory("CTNet-m", workload, chosen, compiled=False, mixed=mixed)
        rows.append({"patch": patch, "features": features, "estimate": estimate, "measured": measured})
        sizes = f"{estimate / 2**30:.2f} | {measured / 2**30:.2f}"
        typer.echo(f"| {patch} | {features} | {sizes} | {estimate / measured - 1:+.0%} |")
    if out is not None:
        write_json(out, {"machine": machine(chosen), "rows": rows})


def _device(name: str) -> torch.device:
    from ctnet_nnunet.nnunet_version import require_supported_nnunet

    require_supported_nnunet()
    import torch

    if name not in ("cpu", "cuda"):
        raise SetupError(f"-device {name!r}: cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise SetupError("-device cuda: torch sees no GPU here; measure with -device cpu, or see `ctnet doctor`")
    return torch.device(name)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise PlanError(f"--patch {text!r}: two or three numbers of voxels, for example 64,64,64")
    return sizes
