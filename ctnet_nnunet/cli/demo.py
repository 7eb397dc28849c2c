"""``ctnet demo``: the whole way on real data, from raw scans to a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from ctnet_nnunet.evaluation.cases import Evaluation


def demo(
    out: Path = typer.Option(Path("ctnet_demo"), "--out", help="Folder for everything that the demo writes."),
    quick: bool = typer.Option(False, "--quick", help="Train for seconds: shows that all works, not how well."),
    restart: bool = typer.Option(False, "--restart", help="Start over; without it, an earlier run goes on."),
) -> None:
    """Pretrain, fine-tune in five folds and predict new scans by the real commands; ends with report.html."""
    from rich.console import Console

    from ctnet_nnunet.demo.pipeline import StepFailedError
    from ctnet_nnunet.demo.run import run_demo
    from ctnet_nnunet.demo.settings import FULL, QUICK
    from ctnet_nnunet.nnunet_version import require_supported_nnunet

    require_supported_nnunet()
    console = Console()
    try:
        evaluation, report = run_demo(out, QUICK if quick else FULL, restart, console)
    except StepFailedError as error:
        for line in error.tail:
            typer.echo(f"    {line}", err=True)
        raise
    except KeyboardInterrupt:
        typer.echo("\nctnet: stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    if evaluation.table:
        console.print(_table(evaluation))
    console.print(f"Report: {report}", markup=False, highlight=False, soft_wrap=True)
    for case, reason in evaluation.failures.items():
        typer.echo(f"ctnet: {case} could not be scored: {reason}", err=True)
    if evaluation.failures:
        raise typer.Exit(1)


def _table(evaluation: Evaluation) -> Table:
    """Dice and HD95 per structure and case, with mean ± sd below."""
    from rich.markup import escape
    from rich.table import Table

    from ctnet_nnunet.evaluation.statistics import mean_over_all, over_cases

    table = Table(title="New scans: Dice / HD95 in mm", title_justify="left", show_footer=True)
    table.add_column("scan", footer="mean ± sd")
    for structure in evaluation.structures:
        dice = over_cases(evaluation.table, structure.name, "dice").text(3)
        hd95 = over_cases(evaluation.table, structure.name, "hd95_mm").text(2)
        table.add_column(escape(structure.name), footer=f"{dice}\n{hd95}", justify="right")
    overall = mean_over_all(evaluation.table, "dice").text(3)
    table.add_column("mean", footer=f"{overall}\n{mean_over_all(evaluation.table, 'hd95_mm').text(2)}", justify="right")
    for case, scores in evaluation.table.items():
        cells = [f"{scores[s.name].dice:.3f} / {scores[s.name].hd95_mm:.2f}" for s in evaluation.structures]
        mean = mean_over_all({case: scores}, "dice").text(3)
        table.add_row(escape(case), *cells, mean)
    return table
