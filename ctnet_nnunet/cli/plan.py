"""``ctnet plan``."""

from __future__ import annotations

from typing import Annotated

import typer


def plan(
    dataset: Annotated[str, typer.Option("-d", help="Dataset id or name.")],
    configuration: Annotated[str | None, typer.Option("-c", help="Configuration; all by default.")] = None,
    preset: Annotated[str, typer.Option(help="Size of the transformer: s, m, l or identity (none).")] = "m",
    gpu_memory: Annotated[float, typer.Option(help="GB that a training step may take.", min=0.1)] = 8.0,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, for example epochs=200 or patch_size=[40,56,40].")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the plans file.")] = "CTNetPlans",
    force: Annotated[bool, typer.Option(help="Also change a plan that models were trained with.")] = False,
) -> None:
    """Plan CTNet for a dataset: patch, batch, network and the ctnet block, written as a plans file."""
    from ctnet_nnunet.nnunet_version import require_supported_nnunet

    require_supported_nnunet()
    from ctnet_nnunet.planning.changes import parse_assignments
    from ctnet_nnunet.planning.write import write_plan

    written = write_plan(dataset, configuration, preset, gpu_memory, parse_assignments(assignments or []), name, force)
    for item in written.configurations:
        blocks = item.transformer
        size = "none" if blocks is None else f"{blocks['embed_dim']} wide, {blocks['depth']} blocks"
        typer.echo(f"{item.name}: patch {item.patch_size}, batch {item.batch_size}, spacing {item.spacing} mm")
        typer.echo(f"  features {item.features}, transformer {size}")
        typer.echo(
            f"  one training step takes about {item.memory_gpu.gigabytes:.1f} GB on a GPU (bf16), "
            f"{item.memory_cpu.gigabytes:.1f} GB on the CPU"
        )
        if item.reuses_stock_data:
            typer.echo("  uses the data that nnUNetv2_plan_and_preprocess made for nnUNetPlans")
        else:
            typer.echo(f"  preprocess: nnUNetv2_preprocess -d {dataset} -plans_name {name} -c {item.name}")
    typer.echo(f"wrote {written.file}")
