"""``summary.md`` and ``report.html``: the tables, the curves and the box plot, and what they are of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ctnet_nnunet.evaluation import provenance
from ctnet_nnunet.evaluation.pictures import Picture, svg_uri
from ctnet_nnunet.evaluation.report import style_sheet
from ctnet_nnunet.files import write_text
from ctnet_nnunet.low_label.comparison import ArmFigures, Comparison, arm_figures, compare_arms
from ctnet_nnunet.low_label.experiment import Experiment
from ctnet_nnunet.low_label.figures import Curves, at_quarters, box_figure, colours_of, curve_figure
from ctnet_nnunet.low_label.scores import Row, as_csv

NOTES = (
    "A figure is the mean over draws of the labelled cases, ± the standard deviation over draws; a draw's figure is "
    "the mean over the test cases of the mean over their structures.",
    "HD95 and ASD (average symmetric surface distance) are in mm and are taken over structures that are in truth and "
    "prediction; “missed” counts those in truth alone, “spurious” those in the prediction alone, over all draws. Their "
    "Dice is 0 and counts; a structure that is in neither has no value.",
    "All arms have the same labelled draws, iterations, augmentation, patch and batch. Arms with the same network and "
    "the same tasks share one pretraining, on the images of the pool and imagesUn, so the spread does not hold a "
    "pretraining's own. Semi-supervised arms read the pool's other images, and not imagesUn, while they train.",
    "p: Wilcoxon's signed-rank test on pairs of the same draw and test case, and corrected after Holm for all pairs in "
    "the table. Draws share their test cases, so the pairs are not independent: a guide only. Where a structure is not "
    "in truth, an arm that rightly leaves it out counts as 1 there if the other arm does not.",
    "Curves: nnU-Net's Dice on patches of the test cases, logged behind each epoch and smoothed over a tenth of the "
    "training. They are shown and nothing is chosen by them.",
)


@dataclass(frozen=True)
class Summaries:
    """All that the two pages show."""

    experiment: Experiment
    rows: Sequence[Row]
    curves: Curves

    @property
    def figures(self) -> list[ArmFigures]:
        return arm_figures(self.rows)

    @property
    def comparisons(self) -> list[Comparison]:
        return compare_arms(self.rows)

    def heading(self, labels: int) -> str:
        """A number of labels for people."""
        what = "case" if self.experiment.settings.patient_pattern is None else "patient"
        return f"{labels} labelled {what}{'s' if labels != 1 else ''}"

    def facts(self) -> dict[str, str]:
        """What was run, for the head of either page."""
        settings = self.experiment.settings
        unlabelled = self.experiment.unlabelled
        seconds = sum(self.experiment.seconds.values())
        done = len(self.experiment.seconds)
        facts = {
            "Dataset": f"{settings.dataset}, {settings.configuration}, plans {settings.plans}",
            "Pool": f"{len(settings.pool)} cases",
            **({"Pretrained on": f"the pool and {unlabelled.count} scans of imagesUn"} if unlabelled else {}),
            "Test cases": f"{len(settings.test)}: {_listed(settings.test)}",
            "Training": f"{settings.epochs * settings.per_epoch(settings.iterations)} iterations",
            **self._starts(),
            "CTNet preset": settings.preset,
            "Changed options": ", ".join(f"{k}={v}" for k, v in settings.options.items()) or "none",
            "Seed": str(settings.seed),
            **({"Labels": f"whole patients ({settings.patient_pattern})"} if settings.patient_pattern else {}),
            "Time": f"{seconds / 3600:.1f} h of {done} trainings",
        }
        machine = provenance.machine()
        versions = provenance.versions()
        gpu = "no GPU" if machine["GPU"] == "none" else machine["GPU"]
        facts["Machine"] = f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}, {gpu}"
        return facts | {name: versions[name] for name in ("nnunetv2", "torch", "ctnet_nnunet")}

    def _starts(self) -> dict[str, str]:
        """What the arms began with, other than chance."""
        settings, arms = self.experiment.settings, {row.arm for row in self.rows}
        found = {}
        if settings.pretrain_iterations is not None and any("+" in arm for arm in arms):
            found["Pretraining"] = f"{settings.epochs * settings.per_epoch(settings.pretrain_iterations)} iterations"
        used = {arm.partition("@")[2] for arm in arms if "@" in arm}
        if files := [f"{name}: SHA-256 {self.experiment.checkpoints[name][:16]}…" for name in sorted(used)]:
            found["Checkpoints"] = ", ".join(files)
        return found


def write_pages(summaries: Summaries) -> list[Path]:
    """Write results.csv, comparisons.csv, summary.md and report.html; returns their paths."""
    folder = summaries.experiment.folder
    pages = {
        "results.csv": as_csv(summaries.rows),
        "comparisons.csv": _comparisons_csv(summaries.comparisons),
        "summary.md": markdown(summaries),
        "report.html": html(summaries),
    }
    for name, text in pages.items():
        write_text(folder / name, text)
    return [folder / name for name in pages]


def markdown(summaries: Summaries) -> str:
    """The tables as markdown."""
    lines = ["# Low-label comparison", ""]
    lines += [f"- {key}: {value}" for key, value in summaries.facts().items()]
    for labels in dict.fromkeys(item.labels for item in summaries.figures):
        lines += ["", f"## {summaries.heading(labels)}", "", *_figures_table(summaries, labels)]
        lines += ["", *_curve_table(summaries, labels), *_comparison_table(summaries, labels)]
    return "\n".join([*lines, "", *(f"- {note}" for note in NOTES), ""])


def html(summaries: Summaries) -> str:
    """The tables and pictures as one HTML file that needs no other."""
    environment = Environment(
        loader=PackageLoader("ctnet_nnunet.low_label"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(labels=summaries.heading, number=_number, p=_p)
    figures = summaries.figures
    quarters = at_quarters(summaries.curves)
    colours = colours_of(list(dict.fromkeys(item.arm for item in figures)))
    settings = summaries.experiment.settings
    sections = []
    for labels in dict.fromkeys(item.labels for item in figures):
        shown = [item for item in figures if item.labels == labels]
        curve = None
        if any(count == labels for _, count in summaries.curves):
            iterations = settings.epochs * settings.per_epoch(settings.iterations)
            drawn = curve_figure(summaries.curves, labels, iterations, colours)
            of = f"Learning curves, {summaries.heading(labels)}"
            caption = f"{of}: mean over draws; bands from the least to the greatest draw."
            curve = Picture(svg_uri(drawn), caption, caption)
        sections.append(
            {
                "labels": labels,
                "figures": shown,
                "structures": list(shown[0].structures),
                "quarters": [(arm, values) for (arm, count), values in quarters.items() if count == labels],
                "comparisons": [item for item in summaries.comparisons if item.labels == labels],
                "curve": curve,
            }
        )
    boxes = (
        Picture(svg_uri(box_figure(summaries.rows, colours)), "", "Box plot of the Dice of all arms")
        if figures
        else None
    )
    return environment.get_template("report.html").render(
        style=style_sheet(), facts=summaries.facts(), sections=sections, boxes=boxes, notes=NOTES
    )


def _figures_table(summaries: Summaries, labels: int) -> list[str]:
    shown = [item for item in summaries.figures if item.labels == labels]
    names = list(shown[0].structures)
    head = ["arm", "draws", "Dice", "Jaccard", "HD95 mm", "ASD mm", "missed", "spurious", *names]
    lines = [_row(head), _row(["---"] * len(head))]
    for item in shown:
        metrics = [item.metrics[name].text(3 if name in ("dice", "jaccard") else 2) for name in item.metrics]
        of_all = [f"{item.missed}/{item.rows}", f"{item.spurious}/{item.rows}"]
        per_structure = [item.structures[name].text(3) for name in names]
        lines.append(_row([item.arm, str(item.draws), *metrics, *of_all, *per_structure]))
    return lines


def _curve_table(summaries: Summaries, labels: int) -> list[str]:
    rows = [(arm, values) for (arm, count), values in at_quarters(summaries.curves).items() if count == labels]
    if not rows:
        return []
    head = ["Dice on patches after", "25 %", "50 %", "75 %", "100 % of the iterations"]
    lines = [_row(head), _row(["---"] * len(head))]
    return [*lines, *(_row([arm, *(_number(value, 3) for value in values)]) for arm, values in rows), ""]


def _comparison_table(summaries: Summaries, labels: int) -> list[str]:
    shown = [item for item in summaries.comparisons if item.labels == labels]
    if not shown:
        return []
    head = ["arms", "difference, Dice points", "pairs", "p", "p corrected"]
    lines = [_row(head), _row(["---"] * len(head))]
    for item in shown:
        cells = [f"{item.first} − {item.second}", f"{item.difference:+.1f}", str(item.pairs)]
        lines.append(_row([*cells, _p(item.p), _p(item.p_corrected)]))
    return lines


def _comparisons_csv(comparisons: Sequence[Comparison]) -> str:
    lines = ["first,second,labels,pairs,difference_dice_points,p,p_corrected"]
    for item in comparisons:
        figures = f"{item.difference:.4f},{item.p:.6g},{item.p_corrected:.6g}"
        lines.append(f"{item.first},{item.second},{item.labels},{item.pairs},{figures}")
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:8])}, …"


def _number(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
