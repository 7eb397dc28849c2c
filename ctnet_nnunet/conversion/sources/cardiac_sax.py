"""Short-axis cine stacks of the heart: the layouts of ACDC and of M&Ms, end-diastole and end-systole as cases."""

from __future__ import annotations

import re
from pathlib import Path

from ctnet_nnunet.conversion.cases import Case, Image, Listing, case_name, relative
from ctnet_nnunet.conversion.labels import make_label_map
from ctnet_nnunet.conversion.patients import read_table
from ctnet_nnunet.conversion.read import is_image, stem, volumes_in
from ctnet_nnunet.errors import DataError

_FRAME = re.compile(r"(?P<patient>.+)_frame(?P<frame>\d+)")
ACDC_LABELS = ((1, "right ventricle"), (2, "myocardium"), (3, "left ventricle"))
MMS_LABELS = ((1, "left ventricle"), (2, "myocardium"), (3, "right ventricle"))
"""The same three structures, numbered the other way round."""


def list_acdc(root: Path) -> Listing:
    """List ``PATIENT/PATIENT_frame01.nii.gz`` with ``…_frame01_gt.nii.gz``; sites are the groups of Info.cfg.

    Raises:
        DataError: no such file.
    """
    listing = Listing(root, ["cine MRI"], label_map=make_label_map(ACDC_LABELS))
    paths = {stem(path): path for path in sorted(root.rglob("*_frame*")) if is_image(path)}
    for name, path in sorted(paths.items()):
        match = _FRAME.fullmatch(name.removesuffix("_gt"))
        if match is None:
            continue
        if name.endswith("_gt"):
            if name.removesuffix("_gt") not in paths:
                place = relative(path, root)
                listing.refused[place] = "is a label map without an image; add the image or remove it"
            continue
        mask = Image(paths[f"{name}_gt"]) if f"{name}_gt" in paths else None
        listing.cases.append(Case(case_name(name), (Image(path),), mask, match["patient"], _group(path.parent)))
    if not listing.cases and not listing.refused:
        raise DataError(f"{root}: holds no PATIENT_frame01.nii.gz as ACDC has, and no M&Ms table was given")
    return listing


def list_mms(root: Path, table: Path) -> Listing:
    """List ``CODE/CODE_sa.nii.gz`` and ``CODE_sa_gt.nii.gz`` (4D), of which the table names the frames ED and ES.

    Sites are the table's centres.

    Raises:
        DataError: the table lacks a column.
    """
    listing = Listing(root, ["cine MRI"], label_map=make_label_map(MMS_LABELS))
    folders = {path.name: path for path in sorted(root.rglob("*")) if path.is_dir()}
    for row in read_table(table, ("External code", "ED", "ES", "Centre")):
        code = row["External code"]
        folder = folders.get(code, root / code)
        image, mask = (next(iter(sorted(folder.glob(f"{code}_{kind}.nii*"))), None) for kind in ("sa", "sa_gt"))
        if image is None:
            listing.refused[code] = f"{code}_sa.nii.gz: no such file; complete the folder or remove the row"
            continue
        for phase in ("ED", "ES"):
            try:
                frame = _frame(row[phase], image)
            except DataError as error:
                listing.refused[f"{code}_{phase}"] = str(error).replace(f"{root}/", "")
                continue
            label = Image(mask, frame) if mask else None
            listing.cases.append(Case(case_name(f"{code}_{phase}"), (Image(image, frame),), label, code, row["Centre"]))
    return listing


def _frame(text: str, image: Path) -> int:
    count = volumes_in(image)
    if not text.isdigit() or int(text) >= count:
        raise DataError(f"{image}: has {count} frames and no frame {text!r}; correct the table")
    return int(text)


def _group(folder: Path) -> str:
    """The ``Group`` of a patient's Info.cfg (DCM, HCM, MINF, NOR, RV); empty without one."""
    file = folder / "Info.cfg"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Group:")), "")
