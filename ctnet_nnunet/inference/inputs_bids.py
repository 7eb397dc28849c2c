"""The scans of a BIDS dataset as cases: suffixes become channels, outputs get the names of BIDS derivatives."""

from __future__ import annotations

from pathlib import Path

from ctnet_nnunet.conversion.read import is_image, stem
from ctnet_nnunet.conversion.sources.bids import list_bids
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.inference.inputs import Case, Found, Wanted, standing_in

_OTHER_FOLDERS = {"func", "dwi", "fmap", "perf", "meg", "eeg", "beh"}
"""Their images are series of volumes or maps, never what a segmentation model is trained on by default."""

_WHERE_NONE_HAS_IT = ", its usual one where no session has it"


def is_bids(folder: Path) -> bool:
    """A BIDS dataset's root: it has subjects with folders of data types, and says so or keeps the naming."""
    subjects = [path for path in folder.glob("sub-*") if path.is_dir()]
    return bool(subjects) and (
        (folder / "dataset_description.json").is_file() or any(folder.glob("sub-*/**/sub-*.nii*"))
    )


def find_bids(root: Path, wanted: Wanted) -> Found:
    """A case for each session; channels are chosen by ``--channel NAME=SUFFIX[,entity=value…]``.

    A session may lack a whole pair where the model gets along without; in the dataset the suffix has to be known.
    Without a choice, a channel is the suffix of its own name (``T1`` also means ``T1w``); the only suffix of the
    dataset's anatomical images serves a model with one channel.

    Raises:
        DataError: No subject, or a channel that no suffix is known for.
    """
    chosen = wanted.choice_of() or _by_name(root, wanted)
    listing = list_bids(root, [chosen[name] for name in wanted.channels], None, None, None, wanted.optional)
    found = Found(failures=dict(listing.refused), bids_root=root)
    for case in listing.cases:
        first = case.images[0].path
        name = stem(first).rpartition("_")[0]  # with the entities of the first channel, without its suffix
        folder = first.parent.relative_to(root).as_posix()
        there = iter(case.images)
        images = [None if number in case.missing else next(there) for number in range(len(wanted.channels))]
        label = f"{folder}/{name}_desc-ctnet_dseg"
        found.cases.append(Case(name, standing_in(images), label, missing=case.missing))
    return found


def _by_name(root: Path, wanted: Wanted) -> dict[str, str]:
    suffixes = {
        stem(path).rpartition("_")[2]
        for path in root.glob("sub-*/**/sub-*")
        if is_image(path) and path.parent.name not in _OTHER_FOLDERS
    }
    chosen = {}
    for name in wanted.channels:
        fitting = [suffix for suffix in sorted(suffixes) if suffix.lower() in (name.lower(), f"{name.lower()}w")]
        if not fitting and len(wanted.channels) == 1:
            fitting = sorted(suffixes)
        if len(fitting) != 1:
            raise DataError(
                f"{root}: which suffix is the model's channel {name}? Its images have "
                f"{', '.join(sorted(suffixes)) or 'none'}; "
                f"choose with --channel {name}=SUFFIX{_WHERE_NONE_HAS_IT if wanted.optional else ''}"
            )
        chosen[name] = fitting[0]
    return chosen
