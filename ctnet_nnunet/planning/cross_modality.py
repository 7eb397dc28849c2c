"""The ``cross_modality`` table of the ``ctnet`` block, the pairs of sequences, and the network that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

from ctnet_nnunet.architectures.cross_modality import (
    PAPER_LEVELS,
    Branch,
    CMFFNet,
    PaperBranch,
    PlanBranch,
    initialise,
    least_patch,
)
from ctnet_nnunet.architectures.from_plan import check_patch, network_from_plan
from ctnet_nnunet.cross_modality.cmft import CMFTOptions
from ctnet_nnunet.errors import DataError, PlanError
from ctnet_nnunet.planning.fields import Count, CountOrZero, NotNegative, Share, Switch, fields_of

PAPER_PAIRS = (("T1", "T1c"), ("T2", "FLAIR"))
NAMES = {
    "T1": ("t1", "t1n", "t1w"),
    "T1c": ("t1c", "t1ce", "t1gd", "t1post", "t1postcontrast"),
    "T2": ("t2", "t2w"),
    "FLAIR": ("flair", "t2f", "t2flair"),
}
"""The paper's sequences and how channel_names of BraTS-like data sets call them, in small letters."""
HOW = 'name them with `ctnet plan --set \'cross_modality.pairs=[["A"],["B"]]\'`'
PAPER_STRIDE = 2**PAPER_LEVELS


class CrossModalityBase(BaseModel):
    """Keys of both trainers; docs/reference/options.md says what each means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: Literal["paper", "plan"] = "paper"
    pairs: list[list[str | int]] | None = None
    regions: Switch | None = None
    features: Count = 16
    negative_slope: NotNegative = 0.2
    masks: Literal["guided", "residual", "none"] = "guided"
    modality_dropout: Share = 0.0
    loss: Literal["dice_ce", "dice"] = "dice_ce"
    cmft_patch: list[Count] | None = None
    discriminator_levels: Count = PAPER_LEVELS
    pictures_every: CountOrZero = 5

    def transition(self) -> CMFTOptions:
        """Raises ValueError on a value out of range."""
        return CMFTOptions(**{field.name: getattr(self, field.name) for field in fields(CMFTOptions)})


CrossModality: type[CrossModalityBase] = create_model(
    "CrossModality", __base__=CrossModalityBase, **fields_of(CMFTOptions)
)
"""The table as a frozen pydantic model; the unit's options are fields of it."""


def resolve_pairs(
    pairs: Sequence[Sequence[str | int]] | None, channel_names: Mapping[str, str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The channels of pair a and of pair b.

    Args:
        pairs: Two lists of channel names or numbers, or None: two channels are a pair of one each, and T1, T1c, T2 and
            FLAIR under any of their usual names are the paper's pairs.
        channel_names: Of dataset.json: number as text → name.

    Raises:
        DataError: The dataset's channels make no pairs by themselves.
        PlanError: A name that the dataset lacks, a channel twice, or not two groups.
    """
    names = [channel_names[key] for key in sorted(channel_names, key=int)]
    has = f"dataset.json has {len(names)} channel{'s' if len(names) != 1 else ''} ({', '.join(names)})"
    if len(names) < 2:
        raise DataError(f"{has}: cross-modality learning wants at least two sequences of each patient; convert both")
    if pairs is None:
        return _usual_pairs(names, has)
    if len(pairs) != 2 or not all(pairs):
        raise PlanError(f"ctnet option cross_modality.pairs={pairs!r}: two groups of channels are wanted; {HOW}")
    first, second = (tuple(_number(item, names, has) for item in group) for group in pairs)
    if len({*first, *second}) != len(first) + len(second):
        raise PlanError(f"ctnet option cross_modality.pairs={pairs!r}: a channel stands twice; name each once")
    return first, second


def _usual_pairs(names: list[str], has: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if len(names) == 2:
        return (0,), (1,)
    if len(names) == 4:
        found = {usual: _those_called(others, names) for usual, others in NAMES.items()}
        if all(len(numbers) == 1 for numbers in found.values()):
            first, second = (tuple(found[usual][0] for usual in group) for group in PAPER_PAIRS)
            return first, second
    why = "an odd number makes no two pairs" if len(names) % 2 else "they are not T1, T1c, T2 and FLAIR"
    raise DataError(f"{has}: {why}; say which sequences belong together: {HOW}")


def _those_called(names: Sequence[str], channels: Sequence[str]) -> list[int]:
    plain = ["".join(c for c in name.lower() if c.isalnum()) for name in channels]
    return [number for number, name in enumerate(plain) if name in names]


def _number(item: str | int, names: list[str], has: str) -> int:
    if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < len(names):
        return item
    if isinstance(item, str) and names.count(item) == 1:
        return names.index(item)
    raise PlanError(f"ctnet option cross_modality.pairs names {item!r}, but {has}; {HOW}")


def check_discriminator_patch(patch_size: Sequence[int], levels: int) -> None:
    """Raise PlanError where a patch is too small for the discriminators of so many levels."""
    least = least_patch(levels)
    if min(patch_size) < least:
        raise PlanError(
            f"plan: patch {list(patch_size)} is too small for a discriminator of {levels} levels, which wants "
            f"{least} voxels along each axis; plan a larger patch, or set cross_modality.discriminator_levels lower"
        )


def fusion_network(
    configuration: Mapping[str, Any], options: CrossModalityBase, num_classes: int, aux: bool = False
) -> CMFFNet:
    """Build and initialise the network of both stages.

    Args:
        configuration: Of the plan, resolved.
        options: With pairs as numbers and ``regions``, as a trainer settles them.
        num_classes: Channels of the logits.
        aux: Whether it gives the branches' logits, too.

    Raises:
        PlanError: Options that no trainer settled; a patch that does not fit; an unknown network.
    """
    pairs = options.pairs
    if pairs is None or options.regions is None:
        raise PlanError("plan: cross_modality.pairs are not settled; train with nnUNetTrainerCMFT or nnUNetTrainerCMFF")
    branches = [branch(configuration, options, len(pair), num_classes) for pair in pairs]
    network = CMFFNet(
        (branches[0], branches[1]),
        [[int(channel) for channel in pair] for pair in pairs],
        num_classes,
        len(configuration["patch_size"]),
        regions=options.regions,
        masks=options.masks,
        slope=options.negative_slope,
        fuses_alone=options.modality_dropout > 0,
        aux=aux,
    )
    initialise(network.fusion, options.negative_slope)
    return network


def branch(configuration: Mapping[str, Any], options: CrossModalityBase, sequences: int, num_classes: int) -> Branch:
    """Build and initialise the network of one pair, or of all sequences at once.

    Args:
        configuration: Of the plan, resolved.
        options: ``arch`` says whose architecture.
        sequences: Channels of its input.
        num_classes: Channels of the logits.

    Raises:
        PlanError: A patch that does not fit; an unknown network.
    """
    patch = configuration["patch_size"]
    if options.arch == "plan":
        check_patch(configuration["architecture"], patch)
        return PlanBranch(network_from_plan(configuration["architecture"], sequences, num_classes, False))
    _check_paper_patch(patch)
    paper = PaperBranch(sequences, num_classes, options.features, options.negative_slope)
    initialise(paper, options.negative_slope)
    return paper


def _check_paper_patch(patch_size: Sequence[int]) -> None:
    remedy = "plan another patch, or set cross_modality.arch=plan for the plan's own stages"
    if len(patch_size) != 3:
        raise PlanError(f"plan: patch {list(patch_size)} is 2d, cross_modality.arch=paper is a 3d network; {remedy}")
    if any(size % PAPER_STRIDE for size in patch_size):
        raise PlanError(
            f"plan: patch {list(patch_size)}: cross_modality.arch=paper wants multiples of {PAPER_STRIDE}; {remedy}"
        )
    if all(size == PAPER_STRIDE for size in patch_size):
        raise PlanError(
            f"plan: patch {list(patch_size)} ends in a single voxel under cross_modality.arch=paper; {remedy}"
        )
