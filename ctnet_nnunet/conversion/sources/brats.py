"""BraTS folders, as the challenge has named its files since 2012."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from ctnet_nnunet.conversion.cases import Case, Image, Listing, case_name, relative
from ctnet_nnunet.conversion.labels import make_label_map
from ctnet_nnunet.conversion.read import is_image, stem
from ctnet_nnunet.errors import DataError

CHANNELS = {"T1": ("t1", "t1n"), "T1ce": ("t1ce", "t1c", "t1gd"), "T2": ("t2", "t2w"), "FLAIR": ("flair", "t2f")}
"""Channel → its names: up to 2021 (``ID_t1ce``), since 2023 (``ID-t1c``), and others in use."""
NECROSIS, OEDEMA, ENHANCING, CAVITY = "necrosis", "oedema", "enhancing tumour", "resection cavity"
SOLID = "non-enhancing tumour"
_OF_2015 = re.compile(r"VSD\.Brain.*\.(?:MR_(?P<kind>[A-Za-z0-9]+)|(?P<label>OT))\.\d+")
"""Up to 2015 every file lies in a folder of its own name, inside that of its case."""
_NAME = re.compile(r"(?P<case>.+)(?P<separator>[_-])(?P<kind>[A-Za-z0-9]+)")


def list_brats(root: Path, channels: list[str], regions: bool, post_treatment: bool) -> Listing:
    """List a BraTS folder; the cases' files may lie at any depth.

    Args:
        channels: some of T1, T1ce, T2, FLAIR.
        regions: train on whole tumour, tumour core and enhancing tumour, as the challenge scores.
        post_treatment: label 4 is the resection cavity (since 2024), not the enhancing tumour (up to 2021).

    Raises:
        DataError: an unknown channel; no such file; several ways of naming, whose labels differ.
    """
    unknown = [name for name in channels if name not in CHANNELS]
    if unknown or not root.is_dir():
        what = f"--channel {unknown[0]!r}: is none of {', '.join(CHANNELS)}" if unknown else f"{root}: no such folder"
        raise DataError(what)
    found, separators = _files(root)
    if len(separators) > 1:
        years = {".": "VSD.Brain… (up to 2015)", "_": "names with _ (up to 2021)", "-": "names with - (since 2023)"}
        found_of = " and ".join(years[separator] for separator in sorted(separators))
        raise DataError(f"{root}: mixes {found_of}, whose labels differ; convert them apart")
    if "." in separators and post_treatment:
        raise DataError(f"{root}: --post-treatment is for the files since 2024, these are of 2015 or before")
    listing = Listing(root, channels)
    rows = [(1, NECROSIS), (2, OEDEMA), (3, ENHANCING)]
    if "." in separators:
        rows[2:] = [(3, SOLID), (4, ENHANCING)]
    if "_" in separators and not post_treatment:
        rows[2] = (4, ENHANCING)
    listing.label_map = make_label_map([*rows, *([(4, CAVITY)] if post_treatment else [])])
    solid = [SOLID] if "." in separators else []
    if regions:
        listing.regions = {
            "whole tumour": [OEDEMA, NECROSIS, *solid, ENHANCING],
            "tumour core": [NECROSIS, *solid, ENHANCING],
            ENHANCING: [ENHANCING],
            **({CAVITY: [CAVITY]} if post_treatment else {}),
        }
    for name, files in sorted(found.items()):
        _add(listing, name, files)
    if not listing.cases and not listing.refused:
        raise DataError(f"{root}: holds no file such as ID_flair.nii.gz or ID-t2f.nii.gz")
    return listing


def _files(root: Path) -> tuple[dict[str, dict[str, list[Path]]], set[str]]:
    """Case → channel (or ``seg``) → files, and which separators the names have."""
    kinds = {kind: channel for channel, names in CHANNELS.items() for kind in names} | {"seg": "seg"}
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    separators = set()
    for path in sorted(root.rglob("*")):
        if not is_image(path):
            continue
        if early := _OF_2015.fullmatch(stem(path)):
            if channel := kinds.get((early["kind"] or "seg").lower()):
                found[path.parents[1].name][channel].append(path)
                separators.add(".")
            continue
        match = _NAME.fullmatch(stem(path))
        if match and (channel := kinds.get(match["kind"].lower())):
            found[match["case"]][channel].append(path)
            separators.add(match["separator"])
    return found, separators


def _add(listing: Listing, name: str, files: dict[str, list[Path]]) -> None:
    missing = [channel for channel in listing.channels if channel not in files]
    several = next((paths for paths in files.values() if len(paths) > 1), None)
    if missing == listing.channels:
        place = relative(files["seg"][0], listing.root) if "seg" in files else name
        listing.refused[place] = "is a label map without an image; add the images or remove it"
    elif missing:
        listing.refused[name] = f"lacks the channel {', '.join(missing)}; complete or remove the case"
    elif several:
        shown = ", ".join(relative(path, listing.root) for path in several)
        listing.refused[name] = f"has several files for one channel: {shown}; remove the copies"
    else:
        images = tuple(Image(files[channel][0]) for channel in listing.channels)
        label = Image(files["seg"][0]) if "seg" in files else None
        listing.cases.append(Case(case_name(name), images, label, _patient(name)))


def _patient(name: str) -> str:
    """BraTS-GLI-00012-001 is the second visit of BraTS-GLI-00012; older names are a patient each."""
    match = re.fullmatch(r"(BraTS-[A-Za-z]+-\d+)-\d+", name)
    return match[1] if match else name
