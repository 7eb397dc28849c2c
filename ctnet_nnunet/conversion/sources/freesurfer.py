"""A FreeSurfer (or FastSurfer) subjects folder: images of each subject's mri folder, and chosen structures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ctnet_nnunet.conversion.cases import Case, Image, Listing, case_name
from ctnet_nnunet.conversion.labels import LabelMap, make_label_map, read_label_map
from ctnet_nnunet.errors import DataError

DEEP_GRAY = (10, 11, 12, 13, 49, 50, 51, 52)
"""Thalamus, caudate, putamen and pallidum, left and right."""


def list_freesurfer(root: Path, images: list[str], labels: str, structures: str, names_file: Path) -> Listing:
    """List the subjects of a subjects folder.

    Args:
        images: files of the mri folder, one a channel, for example ``T1.mgz``.
        labels: the label map there, for example ``aseg.mgz``; a subject without it goes to imagesUn.
        structures: ``deep-gray``, ``all``, or numbers and names of structures, separated by commas.
        names_file: number,name of every structure.

    Raises:
        DataError: no subject, or an unknown structure.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    folders = [path for path in sorted(root.iterdir()) if (path / "mri").is_dir()]
    if not folders:
        raise DataError(f"{root}: no folder in it has an mri folder; give the folder with the subjects (SUBJECTS_DIR)")
    listing = Listing(root, [name.split(".")[0] for name in images], label_map=choose(structures, names_file))
    for folder in folders:
        files = [folder / "mri" / name for name in images]
        missing = [file.name for file in files if not file.is_file()]
        name = case_name(folder.name)
        if missing:
            listing.refused[name] = f"{folder.name}/mri: lacks {', '.join(missing)}; finish or remove the subject"
            continue
        mask = folder / "mri" / labels
        label = Image(mask) if mask.is_file() else None
        listing.cases.append(Case(name, tuple(Image(file) for file in files), label, _person(folder.name)))
    return listing


def choose(structures: str, names_file: Path) -> LabelMap:
    """The label map of the chosen structures; all others become background.

    Raises:
        DataError: a number or name that the file does not list.
    """
    known = read_names(names_file)
    if structures == "all":
        return make_label_map(known.items(), others_are_background=True)
    if structures == "deep-gray":
        return make_label_map(((number, known[number]) for number in DEEP_GRAY), others_are_background=True)
    numbers = {name.lower(): number for number, name in known.items()}
    chosen = []
    for text in (part.strip() for part in structures.split(",")):
        number = int(text) if text.isdigit() else numbers.get(text.lower(), -1)
        if number not in known:
            raise DataError(f"--structures: {text!r} is in no line of {names_file.name}; for example Left-Hippocampus")
        chosen.append((number, known[number]))
    return make_label_map(chosen, others_are_background=True)


def read_names(path: Path) -> Mapping[int, str]:
    """Number → name, from a CSV file or a FreeSurfer colour table (number, name, and colours, separated by blanks).

    Raises:
        DataError: unreadable.
    """
    if path.suffix.lower() == ".csv":
        table = read_label_map(str(path))
        return {number: table.names[target - 1] for number, target in table.targets.items() if target}
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a colour table ({error})") from None
    found = {int(row[0]): row[1] for row in rows if len(row) > 1 and row[0].isdigit() and row[0] != "0"}
    if not found:
        raise DataError(f"{path}: holds no structure; wanted lines such as: 10 Left-Thalamus 0 118 14 0")
    return found


def _person(subject: str) -> str:
    """The person of a subject folder: time points of the longitudinal stream (``tp1.long.anna``) share a template."""
    return subject.split(".long.")[1] if ".long." in subject else ""
