"""What makes an output folder a dataset of BIDS derivatives: a description, a table and a sidecar per label map."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import ctnet_nnunet
from ctnet_nnunet.evaluation.metrics import Structure
from ctnet_nnunet.files import write_text
from ctnet_nnunet.inference.inputs import Case

BIDS_VERSION = "1.10.0"


def write_description(out: Path, root: Path, model: str) -> None:
    """``dataset_description.json`` of the derivatives; ``model`` says which model made them."""
    content = {
        "Name": "Structures predicted by ctnet predict",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "ctnet_nnunet", "Version": ctnet_nnunet.__version__, "Description": model}],
        "DatasetLinks": {"source": Path(os.path.relpath(root.resolve(), out.resolve())).as_posix()},
    }
    write_text(out / "dataset_description.json", json.dumps(content, indent=1) + "\n")


def write_sidecars(case: Case, labels: Path, ending: str, names: Mapping[int, str], root: Path) -> None:
    """Beside a label map: ``…_dseg.tsv`` (index, name) and ``…_dseg.json`` (the images that it was made from)."""
    base = labels.with_name(labels.name[: -len(ending)])
    rows = "".join(f"{value}\t{name}\n" for value, name in sorted(names.items()))
    write_text(base.with_name(f"{base.name}.tsv"), f"index\tname\n{rows}")
    sources = [f"bids:source:{image.path.relative_to(root).as_posix()}" for image in case.images]
    write_text(base.with_name(f"{base.name}.json"), json.dumps({"Sources": sources}, indent=1) + "\n")


def label_names(structures: Sequence[Structure], class_order: Sequence[int] | None) -> dict[int, str]:
    """Value in the label map → name. ``class_order``: the value that each region paints over the ones before."""
    if class_order is None:
        return {structure.labels[0]: structure.name for structure in structures}
    return {int(value): structure.name for structure, value in zip(structures, class_order, strict=True)}
