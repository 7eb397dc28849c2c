"""A BIDS dataset: suffixes become channels, a session a case, label maps come from derivatives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.conversion.cases import Case, Image, Listing, case_name, relative
from ctnet_nnunet.conversion.labels import LabelMap, make_label_map
from ctnet_nnunet.conversion.patients import read_table
from ctnet_nnunet.conversion.read import is_image, stem
from ctnet_nnunet.errors import DataError

Session = tuple[str, str]


@dataclass(frozen=True)
class Selection:
    """Which files: a suffix and the values of entities, as in ``T1w,acq=mprage``; ``ce=`` means without it."""

    text: str
    suffix: str
    entities: dict[str, str]

    def fits(self, suffix: str, entities: dict[str, str]) -> bool:
        return suffix == self.suffix and all(entities.get(key, "") == value for key, value in self.entities.items())


def list_bids(
    root: Path,
    channels: list[str],
    labels: str | None,
    derivatives: Path | None,
    site_column: str | None,
    optional: Sequence[Sequence[int]] = (),
) -> Listing:
    """List the sessions of a BIDS dataset.

    Args:
        channels: selections such as ``T1w`` or ``T1w,acq=mprage``, one a channel.
        labels: the selection of the label maps, for example ``dseg,desc=manual``.
        derivatives: where label maps lie; default ``root/derivatives``.
        site_column: the column of participants.tsv that names the site.
        optional: groups of channels; a session may lack all of one.

    Raises:
        DataError: no subject, an unusable selection, or no such column.
    """
    if not root.is_dir() or not any(root.glob("sub-*")):
        raise DataError(f"{root}: holds no sub-… folder; give the folder of a BIDS dataset")
    wanted = [_selection(text) for text in channels]
    listing = Listing(root, [selection.text.replace(",", "_") for selection in wanted])
    images = [_find(root, selection) for selection in wanted]
    masks: dict[Session, list[Path]] = {}
    if labels:
        folder = derivatives or root / "derivatives"
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; name the one with the label maps with --derivatives")
        masks = _find_below(folder, _selection(labels))
        listing.label_map = _look_up_table(folder)
    sites = _sites(root, site_column) if site_column else {}
    for session in sorted({key for found in images for key in found}):
        _add(listing, session, wanted, images, masks.get(session, []), sites, [sorted(group) for group in optional])
    for session in sorted(masks.keys() - {key for found in images for key in found}):
        for path in masks[session]:
            listing.refused[relative(path, root)] = "is a label map without an image; add the image or remove it"
    if not listing.cases and not listing.refused:
        raise DataError(f"{root}: no file fits {', '.join(channels)}; check the suffix, for example T1w")
    return listing


def _add(
    listing: Listing,
    session: Session,
    wanted: list[Selection],
    images: list[dict[Session, list[Path]]],
    masks: list[Path],
    sites: dict[str, str],
    optional: list[list[int]],
) -> None:
    """Add one session as a case, or say why not."""
    name = case_name("_".join(part for part in session if part))
    found = [files.get(session, []) for files in images]
    missing = [number for number, files in enumerate(found) if not files]
    several = next((files for files in (*found, masks) if len(files) > 1), None)
    if missing and missing not in optional:
        lacking = ", ".join(wanted[number].text for number in missing)
        listing.refused[name] = f"lacks the channel {lacking}; complete or remove the session"
    elif several:
        shown = ", ".join(relative(path, listing.root) for path in several)
        listing.refused[name] = (
            f"has several files for one channel: {shown}; choose by an entity: T1w,run=1, or T1w,run= for none"
        )
    else:
        mask = Image(masks[0]) if masks else None
        site = sites.get(session[0].removeprefix("sub-"), "")
        images_there = tuple(Image(files[0]) for files in found if files)
        listing.cases.append(Case(name, images_there, mask, session[0], site, missing=tuple(missing)))


def _selection(text: str) -> Selection:
    suffix, *rest = text.split(",")
    entities = dict(part.split("=", 1) for part in rest if "=" in part)
    if not suffix or "=" in suffix or len(entities) != len(rest):
        raise DataError(f"{text!r}: wanted a suffix and, if needed, entities, as in T1w,acq=mprage")
    return Selection(text, suffix, entities)


def _find(root: Path, selection: Selection) -> dict[Session, list[Path]]:
    """The dataset's own files; derivatives lie elsewhere."""
    found: dict[Session, list[Path]] = defaultdict(list)
    for subject in sorted(root.glob("sub-*")):
        for session, paths in _find_below(subject, selection).items():
            found[session] += paths
    return dict(found)


def _find_below(folder: Path, selection: Selection) -> dict[Session, list[Path]]:
    found: dict[Session, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("sub-*")):
        if not is_image(path):
            continue
        *parts, suffix = stem(path).split("_")
        entities = dict(part.split("-", 1) for part in parts if "-" in part)
        if selection.fits(suffix, entities):
            session = f"ses-{entities['ses']}" if "ses" in entities else ""
            found[(f"sub-{entities['sub']}", session)].append(path)
    return dict(found)


def _look_up_table(derivatives: Path) -> LabelMap | None:
    """The names in a ``…dseg.tsv`` of the derivatives, as BIDS has them for label maps."""
    tables = sorted([*derivatives.glob("*dseg.tsv"), *derivatives.glob("*/*dseg.tsv")])
    if len(tables) != 1:
        return None
    rows = read_table(tables[0], ("index", "name"))
    try:
        return make_label_map((int(row["index"]), row["name"]) for row in rows)
    except ValueError as error:
        raise DataError(f"{tables[0]}: the column index holds what is no integer ({error})") from None


def _sites(root: Path, column: str) -> dict[str, str]:
    """Subject (without ``sub-``) → site, from participants.tsv."""
    rows = read_table(root / "participants.tsv", ("participant_id", column))
    return {row["participant_id"].removeprefix("sub-"): row[column] for row in rows}
