"""NIfTI (or NRRD, MGH, …) files in any folder: by patterns, from a table, or as two folders of pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.conversion.cases import Case, Image, Listing, case_name, relative
from ctnet_nnunet.conversion.patients import COLUMNS, read_table
from ctnet_nnunet.conversion.read import is_image, stem
from ctnet_nnunet.errors import DataError

_FIELDS = re.compile(r"\{(\w*)\}")

Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pattern:
    """A path with fields in braces and ``*``, such as ``{patient}/{session}/*_T1.nii.gz``, below a folder.

    A field stands for part of one folder or file name and has the same value wherever it stands; together the fields
    name the case. ``{patient}`` and ``{site}`` also group it.
    """

    text: str

    @property
    def fields(self) -> list[str]:
        return list(dict.fromkeys(_FIELDS.findall(self.text)))

    def find(self, root: Path) -> dict[Key, list[Path]]:
        """The files that fit, by the values of the fields."""
        regex, seen = "", set[str]()
        for index, part in enumerate(_FIELDS.split(self.text)):
            if index % 2 == 0:
                regex += re.escape(part).replace(r"\*", "[^/]*")
            else:
                regex += f"(?P={part})" if part in seen else f"(?P<{part}>[^/]+?)"
                seen.add(part)
        found: dict[Key, list[Path]] = {}
        for path in sorted(root.glob(_FIELDS.sub("*", self.text).replace("**", "*"))):
            if match := re.fullmatch(regex, path.relative_to(root).as_posix()):
                found.setdefault(tuple(match.groupdict().items()), []).append(path)
        return found


def list_patterns(root: Path, channels: Sequence[str], label: str | None) -> Listing:
    """List ``root`` by ``NAME=PATTERN`` for each channel and a pattern for the label maps.

    Raises:
        DataError: a pattern without fields, or with other ones than the first has; nothing fits.
    """
    patterns = dict(_channel_pattern(text) for text in channels)
    fields = set(next(iter(patterns.values())).fields)
    for pattern in (*patterns.values(), *([Pattern(label)] if label else [])):
        if not pattern.fields or set(pattern.fields) != fields:
            raise DataError(
                f"pattern {pattern.text!r}: has the fields {pattern.fields}; every pattern needs the same ones, "
                "for example {case}"
            )
    _require_folder(root)
    listing = Listing(root, list(patterns))
    images = [pattern.find(root) for pattern in patterns.values()]
    labels = {_sorted(key): files for key, files in Pattern(label).find(root).items()} if label else {}
    by_key = [{_sorted(key): files for key, files in found.items()} for found in images]
    names = {_sorted(key): _case_of(key) for found in reversed(images) for key in found}
    for key, name in sorted(names.items(), key=lambda item: item[1]):
        missing = [channel for channel, found in zip(patterns, by_key, strict=True) if key not in found]
        several = [paths for found in (*by_key, labels) if len(paths := found.get(key, [])) > 1]
        if missing:
            listing.refused[name] = f"lacks the channel {', '.join(missing)}; complete or remove the case"
        elif several:
            shown = ", ".join(relative(path, root) for path in several[0])
            listing.refused[name] = f"has several files for one channel: {shown}; make the pattern narrower"
        else:
            files = [Image(found[key][0]) for found in by_key]
            known = dict(key)
            mask = Image(labels[key][0]) if key in labels else None
            listing.cases.append(
                Case(case_name(name), tuple(files), mask, known.get("patient", ""), known.get("site", ""))
            )
    for key in labels.keys() - names.keys():
        listing.refused[relative(labels[key][0], root)] = "is a label map without an image; add the image or remove it"
    return _not_empty(listing, f"no file fits {next(iter(patterns.values())).text!r}")


def list_pairs(images: Path, labels: Path | None, channels: Sequence[str]) -> Listing:
    """List two folders whose files have the same name; images may end in _0000, _0001, … for their channels.

    Raises:
        DataError: a folder is missing or holds no image.
    """
    _require_folder(images)
    masks = {stem(path): path for path in _images_in(labels)} if labels and _require_folder(labels) else {}
    found = _by_case(_images_in(images), set(masks), len(channels))
    root = images.parent if labels is None or labels.parent == images.parent else images
    count = max((max(files) + 1 for files in found.values()), default=0)
    if channels and count and len(channels) != count:
        raise DataError(f"--channel: {len(channels)} names for the {count} channels in {images}; give one for each")
    listing = Listing(root, list(channels) or [f"channel_{index}" for index in range(count)])
    for name, files in sorted(found.items()):
        missing = [f"_{index:04d}" for index in range(count) if index not in files]
        if missing:
            listing.refused[name] = f"lacks the channel {', '.join(missing)}; complete or remove the case"
            continue
        mask = Image(masks[name]) if name in masks else None
        listing.cases.append(Case(case_name(name), tuple(Image(files[index]) for index in range(count)), mask))
    for name in sorted(masks.keys() - found.keys()):
        listing.refused[relative(masks[name], root)] = "is a label map without an image; add the image or remove it"
    return _not_empty(listing, f"{images}: holds no image")


def _by_case(images: list[Path], labels: set[str], channels: int) -> dict[str, dict[int, Path]]:
    """Case → channel → file. A number at the end is a channel, unless it is part of the cases' names.

    The names of the label maps decide; without any, the number of channels; without both, whether every case starts
    at _0000.
    """
    plain = {stem(path): {0: path} for path in images}
    numbered: dict[str, dict[int, Path]] = {}
    for path in images:
        match = re.fullmatch(r"(.+)_(\d{4})", stem(path))
        if match is None:
            return plain
        numbered.setdefault(match[1], {})[int(match[2])] = path
    count = max((max(files) + 1 for files in numbered.values()), default=0)
    if labels:
        return plain if labels & plain.keys() else numbered
    if channels:
        return numbered if count == channels else plain
    return numbered if all(0 in files for files in numbered.values()) and len(numbered) > 1 else plain


def list_table(table: Path) -> Listing:
    """List a CSV or TSV file: columns case, label, patient, site (all but case optional), and one for each channel.

    Paths are below the table's folder. An empty label means that the scan has none.

    Raises:
        DataError: no channel column, or no row.
    """
    rows = read_table(table, ("case",))
    channels = [name for name in (rows[0] if rows else {}) if name not in COLUMNS]
    if not channels:
        raise DataError(f"{table}: has no column for an image; name one after its channel, for example T1w")
    listing = Listing(table.parent, channels)
    for row in rows:
        missing = [name for name in channels if not row[name]]
        wanted = [row[name] for name in (*channels, "label") if row.get(name)]
        absent = [name for name in wanted if not (table.parent / name).is_file()]
        if missing or absent:
            what = f"lacks the channel {', '.join(missing)}" if missing else f"{', '.join(absent)}: no such file"
            listing.refused[row["case"] or "a row without a case"] = f"{what}; correct {table.name}"
            continue
        images = tuple(Image(table.parent / row[name]) for name in channels)
        mask = Image(table.parent / row["label"]) if row.get("label") else None
        name = case_name(row["case"])
        listing.cases.append(Case(name, images, mask, row.get("patient", ""), row.get("site", "")))
    return _not_empty(listing, f"{table}: has no row")


def _channel_pattern(text: str) -> tuple[str, Pattern]:
    name, equals, pattern = text.partition("=")
    if not equals or not name or not pattern:
        raise DataError(f"--channel {text!r}: wanted NAME=PATTERN, for example T1w=images/{{case}}_T1.nii.gz")
    return name, Pattern(pattern)


def _case_of(key: Key) -> str:
    return "_".join(value for name, value in key if name != "site")


def _sorted(key: Key) -> Key:
    return tuple(sorted(key))


def _images_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if is_image(path)]


def _require_folder(folder: Path) -> bool:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return True


def _not_empty(listing: Listing, problem: str) -> Listing:
    if not listing.cases and not listing.refused:
        raise DataError(f"{problem}; check the folder and the pattern")
    return listing
