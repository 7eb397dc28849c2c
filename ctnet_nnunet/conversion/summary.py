"""The page beside a converted dataset: every case with its picture, what was said about it, and what was refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from ctnet_nnunet.conversion.cases import Case, Listing
from ctnet_nnunet.conversion.pictures import COLOURS

if TYPE_CHECKING:
    from ctnet_nnunet.conversion.case import Outcome
    from ctnet_nnunet.conversion.report import Report


def write_page(path: Path, dataset: str, listing: Listing, outcomes: Mapping[str, Outcome], report: Report) -> None:
    """Write the page; its pictures lie beside it. The same conversion gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("ctnet_nnunet.conversion"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    names = report.labels.names if report.labels else ()
    fold_of = {name: fold for fold, split in enumerate(report.splits) for name in split["val"]}
    labels = [
        {"name": name, "colour": "#" + bytes(COLOURS[index % len(COLOURS)]).hex()} for index, name in enumerate(names)
    ]
    text = environment.get_template("summary.html").render(
        dataset=dataset,
        channels=listing.channels,
        labels=labels,
        cases=[_row(case, outcomes[case.name], fold_of, names) for case in report.written],
        refused=[_refusal(name, reason, outcomes.get(name)) for name, reason in report.refused.items()],
        notes=report.notes,
        folds=len(report.splits),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _row(case: Case, outcome: Outcome, fold_of: Mapping[str, int], names: tuple[str, ...]) -> dict[str, Any]:
    millilitres = math.prod(outcome.spacing) / 1000
    found = outcome.voxels or {}
    volumes = [f"{names[label - 1]} {count * millilitres:.2f} ml" for label, count in sorted(found.items()) if label]
    return {
        "name": case.name,
        "part": f"images{case.destination}",
        "fold": fold_of.get(case.name),
        "size": " × ".join(map(str, outcome.size)),
        "spacing": " × ".join(f"{s:.3g}" for s in outcome.spacing),
        "stored_as": outcome.stored_as,
        "volumes": volumes,
        "notes": outcome.notes,
        "picture": quote(outcome.picture),
    }


def _refusal(name: str, reason: str, outcome: Outcome | None) -> dict[str, str]:
    return {"name": name, "reason": reason, "picture": quote(outcome.picture) if outcome else ""}
