"""Which files are which case: a single scan, a folder in nnU-Net's naming, or a folder of scans of any name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.errors import DataError

_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class Case:
    """A case's name and its channels' files, in order.

    Attributes:
        missing: Channels that the case lacks; another channel's file stands in for them.
    """

    name: str
    files: tuple[Path, ...]
    missing: tuple[int, ...] = ()


def find_cases(
    source: Path, channels: int, ending: str, optional: Sequence[Sequence[int]] = ()
) -> tuple[list[Case], dict[str, str]]:
    """The cases of ``source``, and those that cannot be used with the reason.

    A folder whose files all end in ``_0000`` and so on is in nnU-Net's naming; otherwise each file is a case of a
    one-channel model. A case may lack all channels of one of the groups in ``optional``.

    Raises:
        DataError: If there is nothing to predict.
    """
    files = [source] if source.is_file() else sorted(p for p in source.glob(f"*{ending}") if p.is_file())
    files = [file for file in files if file.name.endswith(ending) and not file.name.startswith(".")]
    if not files:
        what = "is missing" if not source.exists() else f"holds no *{ending}"
        raise DataError(f"{source}: {what}; give a scan or a folder of scans in the format of the training data")
    stems = {file: file.name[: -len(ending)] for file in files}
    named = all(_CHANNEL.search(stem) for stem in stems.values())
    if not named:
        if channels != 1:
            raise DataError(
                f"{source}: the model wants {channels} channels; name the files CASE_0000{ending}, CASE_0001{ending}, …"
            )
        return [Case(stem, (file,)) for file, stem in stems.items()], {}
    grouped: dict[str, dict[int, Path]] = {}
    for file, stem in stems.items():
        number = int(stem[-4:])
        grouped.setdefault(stem[:-5], {})[number] = file
    if source.is_file() and channels > 1:
        (name,) = grouped
        siblings = {n: source.with_name(f"{name}_{n:04d}{ending}") for n in range(channels)}
        grouped = {name: {n: path for n, path in siblings.items() if path.is_file()}}
    cases, failures = [], {}
    for name, found in grouped.items():
        missing = [number for number in range(channels) if number not in found]
        if sorted(missing) in [sorted(group) for group in optional] and len(found) + len(missing) == channels:
            stand_in = found[min(found)]
            files_or_stand_in = tuple(found.get(number, stand_in) for number in range(channels))
            cases.append(Case(name, files_or_stand_in, tuple(missing)))
        elif missing or len(found) != channels:
            number = missing[0] if missing else max(found)
            problem = "is missing" if missing else "is one too many"
            failures[name] = f"channel {number:04d} {problem}: the model wants {channels}"
        else:
            cases.append(Case(name, tuple(found[number] for number in range(channels))))
    return cases, failures
