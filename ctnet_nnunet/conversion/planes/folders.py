"""Which folders or files of a source are a study, and what is left out of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ctnet_nnunet.conversion.cases import case_name
from ctnet_nnunet.conversion.dicom_headers import read_header
from ctnet_nnunet.conversion.read import is_image, stem
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.planes.sidecar import SEPARATOR


def compiled_pattern(pattern: str) -> re.Pattern[str]:
    """``--study-pattern``; raises DataError for no regular expression or one without a group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--study-pattern {pattern!r}: is no regular expression ({error})") from None
    if compiled.groups < 1:
        raise DataError(f"--study-pattern {pattern!r}: needs a group in brackets that finds the study's name")
    return compiled


def study_folders(source: Path, pattern: str | None) -> tuple[dict[str, Path | list[Path]], dict[str, str]]:
    """Study → its folder, or its files where a pattern sorts the images of one folder; and what is left out, with why.

    Raises:
        DataError: A pattern that is none or fits nothing; nothing to read.
    """
    own = [path for path in sorted(source.iterdir()) if path.is_file() and _is_scan(path)]
    if pattern is not None:
        return _grouped(source, own, pattern)
    folders: dict[str, Path | list[Path]] = {}
    refused: dict[str, str] = {}
    for path in sorted(path for path in source.iterdir() if path.is_dir()):
        name = case_name(path.name)
        if SEPARATOR in path.name:
            refused[path.name] = (
                f"holds {SEPARATOR}, which is reserved between study, role and frame; rename the folder"
            )
        elif name in folders:
            refused[path.name] = f"becomes the study {name!r} as another folder does; rename it"
        else:
            folders[name] = path
    if own and not folders and not refused:
        return {case_name(source.resolve().name): source}, refused
    if own:
        refused[_named(own)] = "beside the studies' folders: not read; put each file into its study's folder"
    if not folders and not refused:
        raise DataError(f"{source}: holds no folder; give the folder with one folder for each study")
    return folders, refused


def _grouped(source: Path, scans: Sequence[Path], pattern: str) -> tuple[dict[str, Path | list[Path]], dict[str, str]]:
    """Study → its files by the pattern; and what the pattern leaves out."""
    compiled, grouped, refused = compiled_pattern(pattern), defaultdict[str, list[Path]](list), dict[str, str]()
    for path in filter(is_image, scans):
        if match := compiled.search(stem(path)):
            grouped[case_name(match[1])].append(path)
        else:
            refused[path.name] = "--study-pattern does not fit its name"
    if not grouped:
        raise DataError(f"--study-pattern {pattern!r}: fits no image in {source}")
    if dicom := [path for path in scans if not is_image(path)]:
        refused[_named(dicom)] = "DICOM, which --study-pattern does not sort; put each study into a folder of its own"
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")):
        refused[folder.name] = "is a folder, and --study-pattern sorts the files of SOURCE alone; convert it by itself"
    return dict(grouped), refused


def _is_scan(path: Path) -> bool:
    """Whether a file is an image, whole or damaged, and not a list or a note beside it."""
    if is_image(path):
        return True
    try:
        return not path.name.startswith(".") and read_header(path) is not None
    except DataError:
        return True


def _named(files: Sequence[Path]) -> str:
    return files[0].name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
