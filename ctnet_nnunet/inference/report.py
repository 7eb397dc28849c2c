"""A page for each scan, and one for the batch: pictures, volumes, agreement of the folds, warnings, provenance."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ctnet_nnunet.evaluation import provenance
from ctnet_nnunet.evaluation.cases import LabelScheme
from ctnet_nnunet.evaluation.metrics import IGNORE
from ctnet_nnunet.evaluation.pictures import Picture, colour, contour_figure, svg_uri
from ctnet_nnunet.evaluation.reference import Reference
from ctnet_nnunet.evaluation.report import duration, style_sheet
from ctnet_nnunet.evaluation.views import read_view
from ctnet_nnunet.files import write_text
from ctnet_nnunet.image_check import read_image_header
from ctnet_nnunet.inference.model import Model
from ctnet_nnunet.inference.run import Batch
from ctnet_nnunet.inference.volume_figure import volume_figure

OUTSIDE = "outside of the training cases’ range"
NOTE = "For research. Not a medical device; not for diagnosis. A person must look at every contour."


def write_scan_page(out: Path, model: Model, batch: Batch, case: str) -> None:
    """Write ``CASE.html`` and ``CASE_viewer.html``.

    Raises:
        DataError: If the scan that was just predicted can no longer be read.
    """
    page = _environment().get_template("scan.html").render(
        case=case, viewer=_write_viewer(out, case, batch), volumes=_volume_picture(case, batch),
        pictures=_pictures(case, model, batch), rows=_rows(case, batch), warnings=batch.warnings[case],
        box=_box(case, batch), seconds=batch.seconds[case],
        files=[str(image.path.name) for image in batch.cases[case].images],
        **_shared(model, batch),
    )  # fmt: skip
    write_text(out / f"{case}.html", page)


def write_batch_page(out: Path, model: Model, batch: Batch) -> None:
    """Write ``report.html``: all scans in one table, with links to their pages."""
    cases = {case: batch.measurements[case] for case in batch.labels}
    page = _environment().get_template("batch.html").render(
        structures=[structure.name for structure in batch.structures], cases=cases, failures=batch.failures,
        look_at={case: _look_at(case, batch) for case in cases}, **_shared(model, batch),
    )  # fmt: skip
    write_text(out / "report.html", page)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ctnet_nnunet.inference"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=_number, duration=duration)
    return environment


def _shared(model: Model, batch: Batch) -> dict[str, Any]:
    return {
        "style": style_sheet(),
        "written": datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        "model": {
            "Model": f"{model.trainer}, {model.plans.plans_name}, folds {', '.join(model.folds)}",
            "Dataset": model.plans.dataset_name,
        },
        "versions": provenance.versions(),
        "hashes": model.hashes,
        "note": NOTE,
        "reference": _described(batch.reference),
    }


def _pictures(case: str, model: Model, batch: Batch) -> list[Picture]:
    labels = model.dataset_json["labels"]
    scheme = LabelScheme(batch.structures, labels.get(IGNORE), model.file_ending)
    view = read_view(batch.views[case][0], None, batch.views[case][1], scheme)
    pictures = []
    for structure, item in zip(batch.structures, batch.measurements[case], strict=True):
        if "empty" in item.flags:
            continue
        caption = f"{structure.name}: {item.volume_ml:.2f} ml"
        figure = contour_figure(view, batch.structures, structure)
        pictures.append(Picture(svg_uri(figure), caption, f"{case}: predicted outlines through {caption}"))
    return pictures


def _write_viewer(out: Path, case: str, batch: Batch) -> str:
    """The name of the scan's viewer; empty for a 2D image, and where regions overlap and share voxels."""
    scan, labels = batch.views[case]
    values = [label for structure in batch.structures for label in structure.labels]
    if read_image_header(scan).size[2:] in ((), (1,)) or len(values) != len(batch.structures):
        return ""
    from ctnet_nnunet.inference.viewer import write_viewer

    name = f"{case}_viewer.html"
    names = {value: structure.name for value, structure in zip(values, batch.structures, strict=True)}
    write_viewer(scan, labels, names, case, out / name)
    return name


def _box(case: str, batch: Batch) -> str:
    """What was done about the box; empty where nobody asked for one."""
    return batch.boxes[case].words if case in batch.boxes else ""


def _volume_picture(case: str, batch: Batch) -> Picture | None:
    """The scan's volumes among the training cases'; None where the model does not have them."""
    if batch.reference is None:
        return None
    measured = {item.structure: item.volume_ml for item in batch.measurements[case]}
    figure = volume_figure(batch.structures, measured, batch.reference)
    if figure is None:
        return None
    caption = f"Dots: the {batch.reference.cases} training cases; diamond: this scan"
    return Picture(svg_uri(figure), caption, f"{case}: volumes among those of the training cases")


def _described(reference: Reference | None) -> str:
    if reference is None:
        return (
            "This model does not hold its training cases’ volumes (ctnet reference writes them), "
            "so there is nothing to compare with."
        )
    return (
        f"Training: smallest to largest volume of {reference.cases} training cases ({reference.dataset}), measured "
        "from their label maps; empty structures left out. A range of training cases is no range of healthy people."
    )


def _among(reference: Reference | None, structure: str, volume_ml: float) -> tuple[str, bool]:
    """The training cases' range of a structure, and whether a volume lies outside."""
    known = reference.volumes(structure) if reference else []
    if not known:
        return "–", False
    return f"{known[0]:.2f} to {known[-1]:.2f}", volume_ml > 0 and not known[0] <= volume_ml <= known[-1]


def _rows(case: str, batch: Batch) -> list[dict[str, Any]]:
    rows = []
    for structure, item in zip(batch.structures, batch.measurements[case], strict=True):
        among, outside = _among(batch.reference, structure.name, item.volume_ml)
        look_at = [*item.flags, *([OUTSIDE] if outside else [])]
        rows.append({"colour": colour(batch.structures, structure), "item": item, "among": among, "look_at": look_at})
    return rows


def _look_at(case: str, batch: Batch) -> str:
    """What the scan's page flags and warns of, in one line."""
    flagged = [(row["item"].structure, row["look_at"]) for row in _rows(case, batch) if row["look_at"]]
    return "; ".join([*(f"{name}: {', '.join(flags)}" for name, flags in flagged), *batch.warnings[case]])


def _number(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"
