"""Methods compared on the same cases: paired tests, effect sizes and a picture."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.evaluation.pictures import PICTURE_WIDTH_INCH, Picture, svg_uri
from ctnet_nnunet.evaluation.plots import INK, SHADES, sober
from ctnet_nnunet.evaluation.report import style_sheet
from ctnet_nnunet.evaluation.statistics import PairedTest, Summary, holm, overlap_pairs, paired_test, summarise
from ctnet_nnunet.evaluation.tables import METRIC_NAMES, ScoreTable

ALL = "mean of structures"
OVERLAPS = ("dice", "jaccard", "nsd")
COLUMNS = (
    "metric", "structure", "first", "second", "pairs", "first_mean", "second_mean", "mean_difference",
    "median_difference", "effect", "p", "p_corrected",
)  # fmt: skip
MEAN_DECIMALS = {"dice": 3, "jaccard": 3, "nsd": 3, "hd95_mm": 2, "assd_mm": 2, "volume_error_percent": 1}


@dataclass(frozen=True)
class Difference:
    """``first − second`` in one metric and structure; ``p_corrected`` after Holm over all rows of the comparison."""

    structure: str
    first: str
    second: str
    first_mean: Summary
    second_mean: Summary
    test: PairedTest
    p_corrected: float


def compare_methods(methods: Sequence[ScoreTable], metric: str) -> list[Difference]:
    """Every pair of methods, structure by structure and for each case's mean over its structures.

    Only cases that both methods have a value for are compared; see
    :func:`~ctnet_nnunet.evaluation.statistics.overlap_pairs` for what one of them rightly leaves empty.

    Raises:
        DataError: If two methods share no case, or have other structures.
    """
    first = methods[0]
    for other in methods[1:]:
        if set(other.structures) != set(first.structures):
            named = sorted(set(other.structures) ^ set(first.structures))
            raise DataError(f"{first.name} and {other.name} have other structures ({', '.join(named[:4])})")
    found = []
    for one, two in itertools.combinations(methods, 2):
        for structure in (ALL, *one.structures):
            paired = _pairs_by_case(one, two, metric, structure)
            if not paired:
                raise DataError(f"{one.name} and {two.name} share no case; evaluate both on the same reference")
            pairs = [pair for pair in paired if not any(map(math.isnan, pair))]
            test = paired_test(a - b for a, b in pairs)
            means = (summarise(a for a, _ in pairs), summarise(b for _, b in pairs))
            found.append(Difference(structure, one.name, two.name, *means, test, math.nan))
    tested = [item for item in found if item.test.pairs]
    corrected = iter(holm([item.test.p for item in tested]))
    return [Difference(**{**vars(item), "p_corrected": next(corrected)}) if item.test.pairs else item for item in found]


def comparison_csv(differences: Sequence[Difference], metric: str) -> str:
    """One line for each pair and structure."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item in differences:
        test = item.test
        numbers = (item.first_mean.mean, item.second_mean.mean, test.mean, test.median, test.effect, test.p)
        cells = ["" if math.isnan(value) else f"{value:.6g}" for value in (*numbers, item.p_corrected)]
        writer.writerow([metric, item.structure, item.first, item.second, test.pairs, *cells])
    return stream.getvalue()


def comparison_html(
    methods: Sequence[ScoreTable], differences: Sequence[Difference], metric: str, unpaired: Mapping[str, int]
) -> str:
    """The comparison as one page that needs no other; ``unpaired``: method → cases that another one lacks."""
    environment = Environment(
        loader=PackageLoader("ctnet_nnunet.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    name = METRIC_NAMES[metric]
    picture = Picture(svg_uri(comparison_figure(methods, metric)), "", f"{name} of every method and structure")
    return environment.get_template("compare.html").render(
        style=style_sheet(), metric=name, decimals=MEAN_DECIMALS[metric], methods=methods, rows=differences,
        picture=picture, unpaired={method: count for method, count in unpaired.items() if count},
    )  # fmt: skip


def comparison_figure(methods: Sequence[ScoreTable], metric: str) -> Figure:
    """A box for each method in each structure, with every case as a dot."""
    structures = [ALL, *methods[0].structures]
    height = 0.5 + len(structures) * (0.16 + 0.2 * len(methods))
    figure = Figure(figsize=(PICTURE_WIDTH_INCH, height), layout="constrained", facecolor="white")
    panel = figure.subplots()
    step = 1.0 / (len(methods) + 1)
    for number, method in enumerate(methods):
        colour = SHADES[number % len(SHADES)]
        for row, structure in enumerate(structures):
            values = [v for v in _by_case(method, metric, structure).values() if not math.isnan(v)]
            place = row + step * (number - (len(methods) - 1) / 2)
            boxes = panel.boxplot([values], positions=[place], orientation="horizontal", widths=0.7 * step,
                                  showfliers=False, patch_artist=True, manage_ticks=False)  # fmt: skip
            for name, lines in boxes.items():
                for line in lines:
                    line.set(color=colour, linewidth=1.8 if name == "medians" else 1)
            boxes["boxes"][0].set(facecolor=f"{colour}30")
            panel.plot(values, [place] * len(values), "o", color=colour, markersize=2, alpha=0.6)
        panel.plot([], [], color=colour, label=method.name)
    panel.set_yticks(range(len(structures)), structures)
    panel.invert_yaxis()
    panel.set_xlabel(METRIC_NAMES[metric], fontsize=7, color=INK)
    panel.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    sober(panel)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6))
    return figure


def shared_cases(methods: Sequence[ScoreTable]) -> dict[str, int]:
    """Method → how many of its cases not all of the others have."""
    cases = {method.name: {case for case, _ in method.values["dice"]} for method in methods}
    common = set.intersection(*cases.values())
    return {name: len(own - common) for name, own in cases.items()}


def _pairs_by_case(one: ScoreTable, two: ScoreTable, metric: str, structure: str) -> list[tuple[float, float]]:
    """Both methods' values of one structure, or the means over structures, in each case that both have."""
    mine, theirs = one.values[metric], two.values[metric]
    if metric in OVERLAPS:
        pairs = overlap_pairs(mine, theirs)
        mine, theirs = ({key: pair[side] for key, pair in pairs.items()} for side in (0, 1))
    first = _by_case(ScoreTable(one.name, {metric: mine}), metric, structure)
    second = _by_case(ScoreTable(two.name, {metric: theirs}), metric, structure)
    return [(first[case], second[case]) for case in first if case in second]


def _by_case(method: ScoreTable, metric: str, structure: str) -> dict[str, float]:
    """Case → its value of one structure, or the mean over its structures."""
    found: dict[str, list[float]] = {}
    for (case, name), value in method.values[metric].items():
        if structure in (name, ALL):
            # An error of −10 % and one of +10 % do not make a right volume.
            found.setdefault(case, []).append(abs(value) if metric == "volume_error_percent" else value)
    return {case: summarise(values).mean for case, values in found.items()}
