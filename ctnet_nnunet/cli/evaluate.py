"""``ctnet evaluate`` and ``ctnet compare``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctnet_nnunet.errors import DataError, SetupError

if TYPE_CHECKING:
    from ctnet_nnunet.evaluation.cases import Evaluation
    from ctnet_nnunet.evaluation.report import Report

WRITTEN = ("scores.csv", "scores.json", "report.html")


def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PRED", help="Folder of predicted label maps.")],
    reference: Annotated[Path, typer.Argument(metavar="REF", help="Folder of true label maps of the same names.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for scores.csv, scores.json and report.html.")],
    dataset_json: Annotated[
        Path | None, typer.Option(help="Names of the labels; else dataset.json beside the predictions.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Tolerance of NSD in mm.", min=0.0)] = 1.0,
    predicted_only: Annotated[
        bool, typer.Option("--predicted-only", help="Only cases that were predicted; others count as failed otherwise.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Write over an earlier evaluation.")] = False,
) -> None:
    """Dice, Jaccard, NSD, HD95, ASSD and volume error per case and structure, in mm and by each file's spacing."""
    from ctnet_nnunet.evaluation.cases import case_names, evaluate_folders, read_label_scheme
    from ctnet_nnunet.evaluation.report import write_report
    from ctnet_nnunet.evaluation.statistics import mean_over_all
    from ctnet_nnunet.evaluation.tables import scores_csv, scores_json
    from ctnet_nnunet.files import write_text

    for folder in (predictions, reference):
        if not folder.is_dir():
            raise SetupError(f"{folder}: is no folder; give those of the predicted and of the true label maps")
    _refuse_existing([out / name for name in WRITTEN], force)
    scheme = read_label_scheme(dataset_json or predictions / "dataset.json")
    cases = case_names(predictions, scheme.file_ending) if predicted_only else None
    result = evaluate_folders(reference, predictions, scheme, cases, tolerance)
    if not result.table:
        case, reason = next(iter(result.failures.items()))
        raise DataError(f"no case could be scored; the first, {case}: {reason}")
    settings = {"predictions": str(predictions), "reference": str(reference), "nsd_tolerance_mm": tolerance}
    write_text(out / "scores.csv", scores_csv(result))
    write_text(out / "scores.json", scores_json(result, settings))
    write_report(out / "report.html", _report(result, settings))
    typer.echo(f"{len(result.table)} cases: Dice {mean_over_all(result.table, 'dice').text(3)}")
    for metric, decimals, unit in (("nsd", 3, ""), ("hd95_mm", 2, " mm"), ("assd_mm", 2, " mm")):
        typer.echo(f"  {metric.removesuffix('_mm').upper()} {mean_over_all(result.table, metric).text(decimals, unit)}")
    typer.echo(f"wrote {', '.join(WRITTEN)} in {out}")
    for case, reason in result.failures.items():
        typer.echo(f"failed: {case}: {reason}", err=True)
    if result.failures:
        raise typer.Exit(1)


def compare(
    scores: Annotated[
        list[Path], typer.Argument(metavar="A B …", help="What `ctnet evaluate` wrote: folders or scores.csv files.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for compare.csv and compare.html.")],
    metric: Annotated[str, typer.Option(help="dice, jaccard, nsd, hd95_mm, assd_mm or volume_error_percent.")] = "dice",
    names: Annotated[str | None, typer.Option(help="Names of the methods, separated by commas.")] = None,
    force: Annotated[bool, typer.Option(help="Write over an earlier comparison.")] = False,
) -> None:
    """Paired Wilcoxon signed-rank tests between methods on the same cases, Holm's correction, effect sizes, a plot."""
    from ctnet_nnunet.evaluation.compare import compare_methods, comparison_csv, comparison_html, shared_cases
    from ctnet_nnunet.evaluation.tables import METRICS, read_scores
    from ctnet_nnunet.files import write_text

    if metric not in METRICS:
        raise SetupError(f"--metric {metric}: one of {', '.join(METRICS)}")
    if len(scores) < 2:
        raise SetupError("ctnet compare: give two or more evaluations")
    _refuse_existing([out / "compare.csv", out / "compare.html"], force)
    called = names.split(",") if names else [_short_name(path) for path in scores]
    if len(called) != len(scores) or len(set(called)) != len(called):
        raise SetupError(f"--names: {len(scores)} different names are wanted, one for each evaluation; got {called}")
    methods = [read_scores(path, name) for path, name in zip(scores, called, strict=True)]
    differences = compare_methods(methods, metric)
    write_text(out / "compare.csv", comparison_csv(differences, metric))
    write_text(out / "compare.html", comparison_html(methods, differences, metric, shared_cases(methods)))
    for item in differences:
        if item.test.pairs:
            typer.echo(
                f"{item.structure}: {item.first} − {item.second} = {item.test.mean:+.4f} "
                f"({item.test.pairs} pairs, effect {item.test.effect:+.2f}, p {item.test.p:.3f}, "
                f"Holm {item.p_corrected:.3f})"
            )
    typer.echo(f"wrote compare.csv and compare.html in {out}")


def _report(result: Evaluation, settings: dict[str, Any]) -> Report:
    from ctnet_nnunet.evaluation import provenance
    from ctnet_nnunet.evaluation.report import Report

    return Report(
        title="Evaluation",
        written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        introduction="Predicted label maps against the true ones.",
        evaluation=result,
        facts={
            "Predictions": settings["predictions"],
            "Reference": settings["reference"],
            "Tolerance of NSD": f"{settings['nsd_tolerance_mm']} mm",
        },
        versions=provenance.versions(),
        notes=("For research. Not a medical device; not for diagnosis.",),
        tolerance_mm=settings["nsd_tolerance_mm"],
    )


def _refuse_existing(files: list[Path], force: bool) -> None:
    if not force and (there := [file for file in files if file.exists()]):
        raise SetupError(f"{there[0]}: exists already; choose another -o, or --force")


def _short_name(path: Path) -> str:
    return path.name if path.is_dir() else path.parent.name or path.stem
